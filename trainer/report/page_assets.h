// The page's style sheet and script.
#pragma once

namespace filigree::report {

// Light and dark by the reader's preference; classes c0..c7 are the palette.
extern const char kPageStyle[];
// Values under the pointer, read from the element with the id "data".
extern const char kPageScript[];

}  // namespace filigree::report
