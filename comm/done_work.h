// The Work of a collective that was complete when its call returned.
#pragma once

#include "comm/communicator.h"

namespace filigree {

class DoneWork final : public Work {
 public:
  void Wait(Stream& stream) override {}
};

}  // namespace filigree
