// Where other hosts may reach this one.
#pragma once

#include <string>
#include <vector>

namespace filigree {

// The addresses of this host's interfaces that are up, as text, IPv4 and IPv6; those of the loopback
// interface and link-local ones are left out. None where the system does not say.
std::vector<std::string> OwnAddresses();

}  // namespace filigree
