// Broken invariants are fatal, always on: CHECK(condition) << context.
//
// The fatal path prints rank, host, step, file:line and the expression, then aborts the peers
// through the hook that the communicator installed, then leaves the process with exit code 1. For
// the outside world (config, files, arguments) use Status instead: a user's mistake is never a
// CHECK.
#pragma once

#include <functional>
#include <sstream>
#include <string>

namespace filigree {

// Who this process is, printed by the fatal path. Set once the communicator is up.
void SetFatalRank(int rank, const std::string& host);
// The training step in progress, printed by the fatal path; -1 outside training.
void SetFatalStep(long long step);
// Called last on the fatal path, to take the peers down too (MPI_Abort, ncclCommAbort). May not
// return.
void SetFatalHook(std::function<void()> hook);

namespace internal {

// Collects the message; the destructor runs the fatal path.
class FatalMessage {
 public:
  FatalMessage(const char* file, int line, const char* expression);
  [[noreturn]] ~FatalMessage();
  std::ostream& stream() { return stream_; }

 private:
  std::ostringstream stream_;
};

// Lets CHECK be a void expression: `&` binds weaker than `<<` and stronger than `?:`.
struct Voidify {
  void operator&(std::ostream&) const {}
};

}  // namespace internal
}  // namespace filigree

#define CHECK(condition)                          \
  (condition) ? static_cast<void>(0)              \
              : ::filigree::internal::Voidify() & \
                    ::filigree::internal::FatalMessage(__FILE__, __LINE__, #condition).stream()

#define FILIGREE_CHECK_OP(a, op, b) CHECK((a)op(b)) << "(" << (a) << " vs " << (b) << ") "
#define CHECK_EQ(a, b) FILIGREE_CHECK_OP(a, ==, b)
#define CHECK_NE(a, b) FILIGREE_CHECK_OP(a, !=, b)
#define CHECK_LE(a, b) FILIGREE_CHECK_OP(a, <=, b)
#define CHECK_LT(a, b) FILIGREE_CHECK_OP(a, <, b)
#define CHECK_GE(a, b) FILIGREE_CHECK_OP(a, >=, b)
#define CHECK_GT(a, b) FILIGREE_CHECK_OP(a, >, b)
