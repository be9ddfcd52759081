// Errors of the outside world: config, files, checkpoints, arguments, interruption.
//
// A message names the place ("configs/a.textproto:12: ...") and the mend ("...; known names are
// ..."). `main` prints it once and exits with the code's exit code. Broken invariants use CHECK
// instead.
#pragma once

#include <optional>
#include <string>
#include <utility>

#include "kernels/base/check.h"

namespace filigree {

enum class StatusCode {
  kOk,
  kInvalidInput,  // bad config, argument or file: exit code 2, nothing written
  kMachine,       // the machine failed us (disk full, no memory): exit code 1
  kInterrupted,   // SIGTERM or SIGUSR1, after saving: exit code 143
};

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {
    CHECK(code != StatusCode::kOk);
  }

  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }
  // The process exit code of the contract: 0, 2, 1 or 143.
  int exit_code() const;

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

inline Status OkStatus() { return Status(); }
Status InvalidInput(std::string message);
Status MachineError(std::string message);
Status Interrupted(std::string message);

// Either a value or the Status that says why there is none.
template <typename T>
class [[nodiscard]] StatusOr {
 public:
  StatusOr(Status status) : status_(std::move(status)) { CHECK(!status_.ok()); }
  StatusOr(T value) : value_(std::move(value)) {}

  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }
  T& value() & { return Checked(); }
  const T& value() const& { return const_cast<StatusOr*>(this)->Checked(); }
  T&& value() && { return std::move(Checked()); }
  T& operator*() & { return Checked(); }
  const T& operator*() const& { return const_cast<StatusOr*>(this)->Checked(); }
  T&& operator*() && { return std::move(Checked()); }
  T* operator->() { return &Checked(); }
  const T* operator->() const { return &const_cast<StatusOr*>(this)->Checked(); }

 private:
  T& Checked() {
    CHECK(value_.has_value()) << status_.message();
    return *value_;
  }

  Status status_;
  std::optional<T> value_;
};

}  // namespace filigree

#define FILIGREE_CONCAT_INNER(a, b) a##b
#define FILIGREE_CONCAT(a, b) FILIGREE_CONCAT_INNER(a, b)

#define RETURN_IF_ERROR(expression)                                               \
  do {                                                                            \
    if (::filigree::Status status_ = (expression); !status_.ok()) return status_; \
  } while (false)

// ASSIGN_OR_RETURN(auto x, MakeX());
#define ASSIGN_OR_RETURN(declaration, expression) \
  FILIGREE_ASSIGN_OR_RETURN(FILIGREE_CONCAT(status_or_, __LINE__), declaration, expression)
#define FILIGREE_ASSIGN_OR_RETURN(temporary, declaration, expression) \
  auto temporary = (expression);                                      \
  if (!temporary.ok()) return temporary.status();                     \
  declaration = std::move(temporary).value()
