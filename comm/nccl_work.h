// Collectives under way on a communicator's stream.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "comm/communicator.h"
#include "kernels/base/device.h"

namespace filigree {

// Events for the collectives under way, used again.
class EventPool {
 public:
  explicit EventPool(Device& device) : device_(device) {}
  std::unique_ptr<Event> Take() {
    if (free_.empty()) return device_.NewEvent();
    std::unique_ptr<Event> event = std::move(free_.back());
    free_.pop_back();
    return event;
  }
  void Give(std::unique_ptr<Event> event) { free_.push_back(std::move(event)); }

 private:
  Device& device_;
  std::vector<std::unique_ptr<Event>> free_;
};

class NcclWork final : public Work {
 public:
  NcclWork(EventPool& pool, Stream& stream) : pool_(pool), done_(pool.Take()) {
    done_->Record(stream);
  }
  // A stream that waits keeps the event's state of that moment, so the event is free afterwards.
  ~NcclWork() override {
    if (!waited_) done_->Synchronize();
    pool_.Give(std::move(done_));
  }
  void Wait(Stream& stream) override {
    stream.Wait(*done_);
    waited_ = true;
  }

 private:
  EventPool& pool_;
  std::unique_ptr<Event> done_;
  bool waited_ = false;
};

}  // namespace filigree
