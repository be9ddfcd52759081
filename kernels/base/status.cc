#include "kernels/base/status.h"

namespace filigree {

int Status::exit_code() const {
  switch (code_) {
    case StatusCode::kOk:
      return 0;
    case StatusCode::kInvalidInput:
      return 2;
    case StatusCode::kMachine:
      return 1;
    case StatusCode::kInterrupted:
      return 143;
  }
  return 1;
}

Status InvalidInput(std::string message) {
  return Status(StatusCode::kInvalidInput, std::move(message));
}

Status MachineError(std::string message) {
  return Status(StatusCode::kMachine, std::move(message));
}

Status Interrupted(std::string message) {
  return Status(StatusCode::kInterrupted, std::move(message));
}

}  // namespace filigree
