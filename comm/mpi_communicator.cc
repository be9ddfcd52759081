#include "comm/mpi_communicator.h"

#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "comm/collective_checks.h"
#include "kernels/base/check.h"

namespace filigree {
namespace {

constexpr const char* kReader = "MPI reads";

std::string ErrorText(int code) {
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(code, text, &length);
  return std::string(text, length);
}

#define MPI_CHECK(call)                                                       \
  do {                                                                        \
    const int mpi_code_ = (call);                                             \
    CHECK(mpi_code_ == MPI_SUCCESS) << #call << ": " << ErrorText(mpi_code_); \
  } while (false)

MPI_Datatype TypeOf(DType dtype) {
  switch (dtype) {
    case DType::kF64:
      return MPI_DOUBLE;
    case DType::kF32:
      return MPI_FLOAT;
    case DType::kBF16:
    case DType::kU16:
      return MPI_UINT16_T;
    case DType::kI64:
      return MPI_INT64_T;
    case DType::kI32:
      return MPI_INT32_T;
    case DType::kU32:
      return MPI_UINT32_T;
    case DType::kU8:
      return MPI_UINT8_T;
  }
  CHECK(false) << "dtype " << static_cast<int>(dtype);
}

// MPI's user-defined operation: b = a + b for bfloat16, each sum rounded once. It commutes to the
// bit, as MPI's own sums do.
void AddBFloat16(void* a, void* b, int* count, MPI_Datatype*) {
  const auto* in = static_cast<const BFloat16*>(a);
  auto* inout = static_cast<BFloat16*>(b);
  for (int i = 0; i < *count; ++i) {
    inout[i] = BFloat16(static_cast<float>(in[i]) + static_cast<float>(inout[i]));
  }
}

std::byte* Bytes(const TensorView& view, int64_t element) {
  return static_cast<std::byte*>(view.data()) +
         element * static_cast<int64_t>(SizeOf(view.dtype()));
}

// Non-blocking collectives under way; finishing may copy a temporary into place.
class MpiWork final : public Work {
 public:
  ~MpiWork() override { Finish(); }
  void Wait(Stream& stream) override { Finish(); }

  // Where to put the handle of the next MPI call; valid until the next Add.
  MPI_Request* Add() { return &requests_.emplace_back(MPI_REQUEST_NULL); }
  // Memory of the size of `out` that lives until the work is done; `out` receives it then.
  TensorView Temporary(TensorView out) {
    out_ = out;
    temporary_ = std::make_unique_for_overwrite<std::byte[]>(out.bytes());
    return TensorView(temporary_.get(), out.dtype(), {out.size()});
  }

 private:
  void Finish() {
    MPI_CHECK(
        MPI_Waitall(static_cast<int>(requests_.size()), requests_.data(), MPI_STATUSES_IGNORE));
    requests_.clear();
    if (temporary_) std::copy_n(temporary_.get(), out_.bytes(), Bytes(out_, 0));
    temporary_.reset();
  }

  std::vector<MPI_Request> requests_;
  std::unique_ptr<std::byte[]> temporary_;
  TensorView out_;
};

class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator(bool finalize, int64_t max_elements)
      : finalize_(finalize), max_elements_(max_elements) {
    // A communicator of our own: tags and error handler do not mix with anybody else's.
    MPI_CHECK(MPI_Comm_dup(MPI_COMM_WORLD, &world_));
    MPI_CHECK(MPI_Comm_set_errhandler(world_, MPI_ERRORS_RETURN));
    MPI_CHECK(MPI_Comm_rank(world_, &rank_));
    MPI_CHECK(MPI_Comm_size(world_, &size_));
    MPI_Comm local;
    MPI_CHECK(MPI_Comm_split_type(world_, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &local));
    MPI_CHECK(MPI_Comm_rank(local, &local_rank_));
    MPI_CHECK(MPI_Comm_size(local, &local_size_));
    MPI_CHECK(MPI_Comm_free(&local));
    MPI_CHECK(MPI_Op_create(&AddBFloat16, /*commute=*/1, &add_bfloat16_));
    char name[MPI_MAX_PROCESSOR_NAME] = {};
    int length = 0;
    MPI_CHECK(MPI_Get_processor_name(name, &length));
    host_.assign(name, length);
    SetFatalHook([] { MPI_Abort(MPI_COMM_WORLD, 1); });
  }

  ~MpiCommunicator() override {
    SetFatalHook(nullptr);
    MPI_Op_free(&add_bfloat16_);
    MPI_Comm_free(&world_);
    if (finalize_) MPI_Finalize();
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int local_rank() const override { return local_rank_; }
  int local_size() const override { return local_size_; }
  const std::string& host() const override { return host_; }

  std::unique_ptr<Work> AllReduce(TensorView data, ReduceOp op, const Event& ready) override {
    CheckHostView(data, ready, kReader);
    auto work = std::make_unique<MpiWork>();
    ForEachPart(data.size(), [&](int64_t begin, int count) {
      MPI_CHECK(MPI_Iallreduce(MPI_IN_PLACE, Bytes(data, begin), count, TypeOf(data.dtype()),
                               OpOf(op, data.dtype()), world_, work->Add()));
    });
    return work;
  }

  // MPI reduces into memory apart from its input, so the own slice arrives in a temporary.
  std::unique_ptr<Work> ReduceScatter(TensorView in, TensorView out, ReduceOp op,
                                      const Event& ready) override {
    CheckHostView(in, ready, kReader);
    CheckSlices(/*whole=*/in, /*slice=*/out, size_);
    auto work = std::make_unique<MpiWork>();
    const MPI_Datatype type = TypeOf(in.dtype());
    const MPI_Op mpi_op = OpOf(op, in.dtype());
    const TensorView result = work->Temporary(out);
    if (out.size() <= max_elements_) {
      MPI_CHECK(MPI_Ireduce_scatter_block(in.data(), result.data(), static_cast<int>(out.size()),
                                          type, mpi_op, world_, work->Add()));
      return work;
    }
    for (int owner = 0; owner < size_; ++owner) {
      ForEachPart(out.size(), [&](int64_t begin, int count) {
        MPI_CHECK(MPI_Ireduce(Bytes(in, owner * out.size() + begin), Bytes(result, begin), count,
                              type, mpi_op, owner, world_, work->Add()));
      });
    }
    return work;
  }

  std::unique_ptr<Work> AllGather(ConstTensorView in, TensorView out, const Event& ready) override {
    CheckHostView(out, ready, kReader);
    CheckSlices(/*whole=*/out, /*slice=*/in, size_);
    auto work = std::make_unique<MpiWork>();
    const MPI_Datatype type = TypeOf(out.dtype());
    std::byte* own = Bytes(out, rank_ * in.size());
    if (in.data() != own) std::copy_n(static_cast<const std::byte*>(in.data()), in.bytes(), own);
    if (in.size() <= max_elements_) {
      MPI_CHECK(MPI_Iallgather(MPI_IN_PLACE, 0, type, out.data(), static_cast<int>(in.size()), type,
                               world_, work->Add()));
      return work;
    }
    for (int owner = 0; owner < size_; ++owner) {
      ForEachPart(in.size(), [&](int64_t begin, int count) {
        MPI_CHECK(MPI_Ibcast(Bytes(out, owner * in.size() + begin), count, type, owner, world_,
                             work->Add()));
      });
    }
    return work;
  }

  std::unique_ptr<Work> Broadcast(TensorView data, int root, const Event& ready) override {
    CheckHostView(data, ready, kReader);
    auto work = std::make_unique<MpiWork>();
    ForEachPart(data.size(), [&](int64_t begin, int count) {
      MPI_CHECK(
          MPI_Ibcast(Bytes(data, begin), count, TypeOf(data.dtype()), root, world_, work->Add()));
    });
    return work;
  }

  void AllReduceHost(std::span<double> values, ReduceOp op) override {
    MPI_CHECK(MPI_Allreduce(MPI_IN_PLACE, values.data(), static_cast<int>(values.size()),
                            MPI_DOUBLE, OpOf(op, DType::kF64), world_));
  }
  void AllReduceHost(std::span<int64_t> values, ReduceOp op) override {
    MPI_CHECK(MPI_Allreduce(MPI_IN_PLACE, values.data(), static_cast<int>(values.size()),
                            MPI_INT64_T, OpOf(op, DType::kI64), world_));
  }
  void BroadcastHost(std::string* text, int root) override {
    auto size = static_cast<int64_t>(text->size());
    MPI_CHECK(MPI_Bcast(&size, 1, MPI_INT64_T, root, world_));
    text->resize(size);
    ForEachPart(size, [&](int64_t begin, int count) {
      MPI_CHECK(MPI_Bcast(text->data() + begin, count, MPI_CHAR, root, world_));
    });
  }
  void Barrier() override { MPI_CHECK(MPI_Barrier(world_)); }
  [[noreturn]] void Abort(int exit_code) override {
    MPI_Abort(MPI_COMM_WORLD, exit_code);
    std::_Exit(exit_code);
  }

 private:
  // Calls run(begin, count) for consecutive parts of [0, size) that one MPI call can take.
  template <typename Run>
  void ForEachPart(int64_t size, const Run& run) const {
    for (int64_t begin = 0; begin < size; begin += max_elements_) {
      run(begin, static_cast<int>(std::min(max_elements_, size - begin)));
    }
  }

  MPI_Op OpOf(ReduceOp op, DType dtype) const {
    if (dtype == DType::kBF16) {
      CHECK(op == ReduceOp::kSum) << "BF16 is only summed";
      return add_bfloat16_;
    }
    switch (op) {
      case ReduceOp::kSum:
        return MPI_SUM;
      case ReduceOp::kMin:
        return MPI_MIN;
      case ReduceOp::kMax:
        return MPI_MAX;
    }
    CHECK(false) << "reduction " << static_cast<int>(op);
  }

  const bool finalize_;
  const int64_t max_elements_;  // in one call
  MPI_Comm world_ = MPI_COMM_NULL;
  MPI_Op add_bfloat16_ = MPI_OP_NULL;
  int rank_ = 0, size_ = 1, local_rank_ = 0, local_size_ = 1;
  std::string host_;
};

}  // namespace

bool MpiIsInitialized() {
  int initialized = 0;
  MPI_CHECK(MPI_Initialized(&initialized));
  return initialized != 0;
}

std::unique_ptr<Communicator> MakeMpiCommunicator(int64_t max_elements_per_call) {
  CHECK(max_elements_per_call >= 1 && max_elements_per_call <= std::numeric_limits<int>::max());
  const bool ours = !MpiIsInitialized();
  if (ours) {
    int provided = 0;
    MPI_CHECK(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided));
    CHECK_GE(provided, MPI_THREAD_FUNNELED);
  }
  return std::make_unique<MpiCommunicator>(ours, max_elements_per_call);
}

}  // namespace filigree
