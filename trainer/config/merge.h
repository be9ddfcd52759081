// Merging of configurations, by reflection: schema changes need no change here.
#pragma once

#include <google/protobuf/message.h>

namespace filigree::config {

// Copies what `from` sets into `to`: scalars replace, messages merge field by field, lists replace
// whole. Of alternatives (warmup_steps, warmup_fraction) the one that `from` sets replaces the
// other.
void MergeFields(const google::protobuf::Message& from, google::protobuf::Message* to);

// Gives every unset scalar of `message` its schema default, if it has one. Messages inside are left
// alone.
void FillDefaults(google::protobuf::Message* message);

}  // namespace filigree::config
