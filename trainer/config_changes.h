// What differs between two effective configurations, for whoever resumes a run with another one.
#pragma once

#include <string>

namespace filigree {

// "schedule.lr 0.001 (was 0.003), phase[1].steps 20 (was 10)": every field whose value differs, by
// its place in the text format; the second of several messages of one name is NAME[1]. Empty where
// nothing differs; a dozen at most, and how many more.
std::string DescribeConfigChanges(const std::string& before, const std::string& now);

}  // namespace filigree
