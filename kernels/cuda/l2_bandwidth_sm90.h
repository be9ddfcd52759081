// How fast the copy engine moves tiles from the L2 to shared memory when nothing else happens: the
// roof of products whose blocks are narrow (kernels/README.md, "The law they obey").
#pragma once

namespace filigree {

// Bytes a second that the forward product's copies land, for 4096x4096 in 128-blocks at 75 % and
// 16,384 tokens, without products; the best of ten runs. 0 on cards that are not Hopper.
double MeasureL2ToSharedBandwidth();

}  // namespace filigree
