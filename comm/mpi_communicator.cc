#include "comm/mpi_communicator.h"

#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/base/check.h"

namespace filigree {
namespace {

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

// Counts are ints in MPI 3.1.
constexpr int64_t kMaxElements = int64_t{1} << 30;

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

// MPI's user-defined operation: b = a + b for bfloat16, each sum rounded once.
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

  MPI_Request* Add() {
    requests_.push_back(MPI_REQUEST_NULL);
    return &requests_.back();
  }
  // Requests must not move while MPI fills them in.
  void Reserve(int64_t elements) { requests_.reserve(elements / kMaxElements + 1); }
  // Memory that lives until the work is done; `out` receives it then.
  std::byte* Temporary(TensorView out) {
    out_ = out;
    temporary_.resize(out.bytes());
    return temporary_.data();
  }

 private:
  void Finish() {
    MPI_CHECK(
        MPI_Waitall(static_cast<int>(requests_.size()), requests_.data(), MPI_STATUSES_IGNORE));
    requests_.clear();
    if (!temporary_.empty()) {
      std::copy(temporary_.begin(), temporary_.end(), static_cast<std::byte*>(out_.data()));
      temporary_.clear();
    }
  }

  std::vector<MPI_Request> requests_;
  std::vector<std::byte> temporary_;
  TensorView out_;
};

class MpiCommunicator final : public Communicator {
 public:
  explicit MpiCommunicator(bool finalize) : finalize_(finalize) {
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
    SetFatalRank(rank_, host_);
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
    CHECK(ready.Done());
    CHECK(data.contiguous());
    auto work = std::make_unique<MpiWork>();
    work->Reserve(data.size());
    for (int64_t begin = 0; begin < data.size(); begin += kMaxElements) {
      const auto count = static_cast<int>(std::min(kMaxElements, data.size() - begin));
      MPI_CHECK(MPI_Iallreduce(MPI_IN_PLACE, Bytes(data, begin), count, TypeOf(data.dtype()),
                               OpOf(op, data.dtype()), world_, work->Add()));
    }
    return work;
  }

  // MPI reduces into memory apart from its input, so the own slice arrives in a temporary.
  std::unique_ptr<Work> ReduceScatter(TensorView in, TensorView out, ReduceOp op,
                                      const Event& ready) override {
    CHECK(ready.Done());
    CHECK(in.contiguous() && out.contiguous());
    CHECK_EQ(in.size(), out.size() * size_);
    CHECK_LE(out.size(), kMaxElements) << "elements in one rank's slice; use smaller buckets";
    auto work = std::make_unique<MpiWork>();
    work->Reserve(1);
    MPI_CHECK(MPI_Ireduce_scatter_block(in.data(), work->Temporary(out),
                                        static_cast<int>(out.size()), TypeOf(in.dtype()),
                                        OpOf(op, in.dtype()), world_, work->Add()));
    return work;
  }

  std::unique_ptr<Work> AllGather(ConstTensorView in, TensorView out, const Event& ready) override {
    CHECK(ready.Done());
    CHECK(in.contiguous() && out.contiguous());
    CHECK_EQ(out.size(), in.size() * size_);
    CHECK_LE(in.size(), kMaxElements) << "elements in one rank's slice; use smaller buckets";
    const bool in_place = in.data() == Bytes(out, rank_ * in.size());
    const auto count = static_cast<int>(in.size());
    auto work = std::make_unique<MpiWork>();
    work->Reserve(1);
    MPI_CHECK(MPI_Iallgather(in_place ? MPI_IN_PLACE : in.data(), count, TypeOf(in.dtype()),
                             out.data(), count, TypeOf(out.dtype()), world_, work->Add()));
    return work;
  }

  std::unique_ptr<Work> Broadcast(TensorView data, int root, const Event& ready) override {
    CHECK(ready.Done());
    CHECK(data.contiguous());
    auto work = std::make_unique<MpiWork>();
    work->Reserve(data.size());
    for (int64_t begin = 0; begin < data.size(); begin += kMaxElements) {
      const auto count = static_cast<int>(std::min(kMaxElements, data.size() - begin));
      MPI_CHECK(
          MPI_Ibcast(Bytes(data, begin), count, TypeOf(data.dtype()), root, world_, work->Add()));
    }
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
    int64_t size = static_cast<int64_t>(text->size());
    MPI_CHECK(MPI_Bcast(&size, 1, MPI_INT64_T, root, world_));
    CHECK_LE(size, kMaxElements);
    text->resize(size);
    MPI_CHECK(MPI_Bcast(text->data(), static_cast<int>(size), MPI_CHAR, root, world_));
  }
  void Barrier() override { MPI_CHECK(MPI_Barrier(world_)); }
  [[noreturn]] void Abort(int exit_code) override {
    MPI_Abort(MPI_COMM_WORLD, exit_code);
    std::_Exit(exit_code);
  }

 private:
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

  bool finalize_;
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

std::unique_ptr<Communicator> MakeMpiCommunicator() {
  const bool ours = !MpiIsInitialized();
  if (ours) {
    int provided = 0;
    MPI_CHECK(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided));
    CHECK_GE(provided, MPI_THREAD_FUNNELED);
  }
  return std::make_unique<MpiCommunicator>(ours);
}

}  // namespace filigree
