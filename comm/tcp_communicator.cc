#include "comm/tcp_communicator.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "comm/collective_checks.h"
#include "comm/done_work.h"
#include "comm/tcp_rendezvous.h"

namespace filigree {
namespace {

constexpr const char* kReader = "sockets read";
constexpr int64_t kChunkElements = int64_t{1} << 18;
constexpr int kAll = -1;

// What the others tell rank 0 before each collective.
struct Call {
  enum Kind : int32_t { kReduce, kReduceScatter, kAllGather, kBroadcast };
  int32_t kind = 0;
  int32_t dtype = 0;
  int32_t argument = 0;  // the reduction, or the root
  int32_t sequence = 0;
  int64_t count = 0;

  bool operator==(const Call&) const = default;
};

template <typename T>
T Combine(T a, T b, ReduceOp op) {
  switch (op) {
    case ReduceOp::kSum:
      return a + b;
    case ReduceOp::kMin:
      return std::min(a, b);
    case ReduceOp::kMax:
      return std::max(a, b);
  }
  CHECK(false) << "reduction " << static_cast<int>(op);
}

std::byte* Bytes(const TensorView& view, int64_t element) {
  return static_cast<std::byte*>(view.data()) +
         element * static_cast<int64_t>(SizeOf(view.dtype()));
}

class TcpCommunicator final : public Communicator {
 public:
  TcpCommunicator(const TcpRendezvous& rendezvous, TcpStar star)
      : rank_(rendezvous.rank), size_(rendezvous.size), star_(std::move(star)) {
    const auto begin = star_.hosts.begin();
    local_rank_ = rendezvous.local_rank;
    if (local_rank_ < 0) {
      local_rank_ = static_cast<int>(std::count(begin, begin + rank_, host()));
    }
    local_size_ = rendezvous.local_size;
    if (local_size_ < 0)
      local_size_ = static_cast<int>(std::count(begin, star_.hosts.end(), host()));
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int local_rank() const override { return local_rank_; }
  int local_size() const override { return local_size_; }
  const std::string& host() const override { return star_.hosts[rank_]; }

  std::unique_ptr<Work> AllReduce(TensorView data, ReduceOp op, const Event& ready) override {
    CheckHostView(data, ready, kReader);
    Announce({Call::kReduce, static_cast<int>(data.dtype()), static_cast<int>(op), 0, data.size()});
    ReduceTyped(data, data, op, kAll);
    return std::make_unique<DoneWork>();
  }

  std::unique_ptr<Work> ReduceScatter(TensorView in, TensorView out, ReduceOp op,
                                      const Event& ready) override {
    CheckHostView(in, ready, kReader);
    CheckSlices(/*whole=*/in, /*slice=*/out, size_);
    Announce(
        {Call::kReduceScatter, static_cast<int>(in.dtype()), static_cast<int>(op), 0, out.size()});
    for (int owner = 0; owner < size_; ++owner) {
      ReduceTyped(in.Range(owner * out.size(), out.size()), out, op, owner);
    }
    return std::make_unique<DoneWork>();
  }

  std::unique_ptr<Work> AllGather(ConstTensorView in, TensorView out, const Event& ready) override {
    CheckHostView(out, ready, kReader);
    CheckSlices(/*whole=*/out, /*slice=*/in, size_);
    Announce({Call::kAllGather, static_cast<int>(in.dtype()), 0, 0, in.size()});
    if (rank_ != 0) {
      Send(0, in.data(), in.bytes());
      Receive(0, out.data(), out.bytes());
      return std::make_unique<DoneWork>();
    }
    if (in.data() != out.data()) std::memcpy(out.data(), in.data(), in.bytes());
    for (int rank = 1; rank < size_; ++rank) {
      Receive(rank, Bytes(out, rank * in.size()), in.bytes());
    }
    for (int rank = 1; rank < size_; ++rank) Send(rank, out.data(), out.bytes());
    return std::make_unique<DoneWork>();
  }

  std::unique_ptr<Work> Broadcast(TensorView data, int root, const Event& ready) override {
    CheckHostView(data, ready, kReader);
    BroadcastBytes(data.data(), static_cast<int64_t>(data.bytes()), root);
    return std::make_unique<DoneWork>();
  }

  void AllReduceHost(std::span<double> values, ReduceOp op) override { ReduceHost(values, op); }
  void AllReduceHost(std::span<int64_t> values, ReduceOp op) override { ReduceHost(values, op); }
  void BroadcastHost(std::string* text, int root) override {
    auto size = static_cast<int64_t>(text->size());
    BroadcastBytes(&size, sizeof(size), root);
    text->resize(size);
    BroadcastBytes(text->data(), size, root);
  }
  void Barrier() override {
    int64_t nothing = 0;
    ReduceHost(std::span<int64_t>(&nothing, 1), ReduceOp::kSum);
  }
  // The connections close with the process; whoever waits for this rank ends too.
  [[noreturn]] void Abort(int exit_code) override { std::_Exit(exit_code); }

 private:
  TcpSocket& Link(int rank) { return star_.links[rank_ == 0 ? rank : 0]; }
  void Send(int rank, const void* data, size_t bytes) {
    CHECK(Link(rank).Send(data, bytes))
        << "rank " << rank << " on " << star_.hosts[rank] << " closed its connection: it ended";
  }
  void Receive(int rank, void* data, size_t bytes) {
    CHECK(Link(rank).Receive(data, bytes))
        << "rank " << rank << " on " << star_.hosts[rank] << " closed its connection: it ended";
  }

  // Ranks that disagree about the next collective would read each other's bytes as their own.
  void Announce(Call call) {
    call.sequence = sequence_++;
    if (rank_ != 0) return Send(0, &call, sizeof(call));
    for (int rank = 1; rank < size_; ++rank) {
      Call other;
      Receive(rank, &other, sizeof(other));
      CHECK(other == call) << "rank " << rank << " on " << star_.hosts[rank] << " calls collective "
                           << other.kind << " of " << other.count << " elements where rank 0 calls "
                           << call.kind << " of " << call.count;
    }
  }

  void ReduceTyped(TensorView data, TensorView out, ReduceOp op, int owner) {
    switch (data.dtype()) {
      case DType::kF64:
        return Reduce<double>(data, out, op, owner);
      case DType::kF32:
        return Reduce<float>(data, out, op, owner);
      case DType::kI64:
        return Reduce<int64_t>(data, out, op, owner);
      case DType::kBF16:
        CHECK(op == ReduceOp::kSum) << "BF16 is only summed";
        return Reduce<BFloat16>(data, out, op, owner);
      default:
        CHECK(false) << "reduction of " << NameOf(data.dtype());
    }
  }

  // All contribute `data`; `owner`, or all, receive the result in `out`. Rank 0's data is
  // overwritten.
  template <typename T>
  void Reduce(TensorView data, TensorView out, ReduceOp op, int owner) {
    for (int64_t begin = 0; begin < data.size(); begin += kChunkElements) {
      const int64_t count = std::min(kChunkElements, data.size() - begin);
      T* mine = data.As<T>() + begin;
      const bool receives = owner == kAll || owner == rank_;
      T* result = receives ? out.As<T>() + begin : nullptr;
      if (rank_ == 0) {
        ReduceAtRoot(mine, result, count, op, owner);
      } else {
        Send(0, mine, count * sizeof(T));
        if (receives) Receive(0, result, count * sizeof(T));
      }
    }
  }

  template <typename T>
  void ReduceAtRoot(T* data, T* result, int64_t count, ReduceOp op, int owner) {
    using Sum = std::conditional_t<std::is_same_v<T, BFloat16>, float, T>;
    std::vector<Sum> sums(count);
    std::vector<T> theirs(count);
    std::transform(data, data + count, sums.begin(), [](T x) { return static_cast<Sum>(x); });
    for (int rank = 1; rank < size_; ++rank) {
      Receive(rank, theirs.data(), count * sizeof(T));
      for (int64_t i = 0; i < count; ++i) {
        sums[i] = Combine(sums[i], static_cast<Sum>(theirs[i]), op);
      }
    }
    std::transform(sums.begin(), sums.end(), data, [](Sum x) { return static_cast<T>(x); });
    if (result && result != data) std::memcpy(result, data, count * sizeof(T));
    for (int rank = 1; rank < size_; ++rank) {
      if (owner == kAll || owner == rank) Send(rank, data, count * sizeof(T));
    }
  }

  template <typename T>
  void ReduceHost(std::span<T> values, ReduceOp op) {
    const auto count = static_cast<int64_t>(values.size());
    const TensorView view(values.data(), DTypeOf<T>::value, {count});
    Announce({Call::kReduce, static_cast<int>(view.dtype()), static_cast<int>(op), 0, count});
    ReduceTyped(view, view, op, kAll);
  }

  void BroadcastBytes(void* data, int64_t bytes, int root) {
    Announce({Call::kBroadcast, 0, root, 0, bytes});
    if (rank_ == root && root != 0) Send(0, data, bytes);
    if (rank_ == 0 && root != 0) Receive(root, data, bytes);
    if (rank_ != 0 && rank_ != root) Receive(0, data, bytes);
    if (rank_ != 0) return;
    for (int rank = 1; rank < size_; ++rank) {
      if (rank != root) Send(rank, data, bytes);
    }
  }

  const int rank_, size_;
  TcpStar star_;
  int local_rank_ = 0, local_size_ = 1;
  int32_t sequence_ = 0;
};

}  // namespace

StatusOr<std::unique_ptr<Communicator>> MakeTcpCommunicator(const TcpRendezvous& rendezvous) {
  ASSIGN_OR_RETURN(TcpStar star, MeetOverTcp(rendezvous));
  return std::unique_ptr<Communicator>(
      std::make_unique<TcpCommunicator>(rendezvous, std::move(star)));
}

}  // namespace filigree
