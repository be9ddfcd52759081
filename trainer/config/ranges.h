// The range of every number in a configuration.
#pragma once

#include <google/protobuf/message.h>

#include "trainer/config/problems.h"

namespace filigree::config {

// Reports every number that was written and lies outside its field's range.
void CheckRanges(const google::protobuf::Message& config, const Origins& origins,
                 Problems* problems);

}  // namespace filigree::config
