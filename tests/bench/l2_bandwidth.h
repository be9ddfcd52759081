// How fast the copy engine moves tiles from L2 to shared memory when nothing else happens.
#pragma once

namespace filigree::bench {

// Walks the work list of a forward product (4096x4096, 128-blocks at 75 %, 16,384 tokens) with the
// product kernel's copies, and no products: prints bytes landed and bytes read per second.
void PrintL2Bandwidth();

}  // namespace filigree::bench
