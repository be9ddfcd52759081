// TensorBoard event files (RUN/tb/events.out.tfevents.*): scalars by tag.
//
// A file is a sequence of records: u64 length, masked CRC-32C of the length, data, masked CRC-32C
// of the data, little-endian. The data is the protobuf message Event of TensorFlow, encoded by hand
// because four of its fields are all we need. A resumed run opens a new file in the same directory;
// where steps overlap, TensorBoard shows the later file's.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>

#include "kernels/base/status.h"

namespace filigree {

// CRC-32C (Castagnoli), and as event files store it.
uint32_t Crc32c(std::string_view bytes);
uint32_t MaskedCrc32c(std::string_view bytes);

// Whole records. `wall_time` is in seconds since 1970.
std::string FileVersionRecord(double wall_time);
std::string ScalarRecord(double wall_time, int64_t step, std::string_view tag, float value);

class EventWriter {
 public:
  // Creates `directory` if need be and a new event file in it.
  static StatusOr<std::unique_ptr<EventWriter>> Create(const std::string& directory);

  // Appends a scalar ("train/loss"). MachineError: the disk is full.
  Status WriteScalar(int64_t step, std::string_view tag, double value);
  // Makes what was written visible to readers. MachineError: the disk is full.
  Status Flush();
  const std::string& path() const { return path_; }

 private:
  struct Closer {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  using File = std::unique_ptr<std::FILE, Closer>;

  EventWriter(std::string path, File file) : path_(std::move(path)), file_(std::move(file)) {}
  Status WriteRecord(const std::string& record);

  std::string path_;
  File file_;
};

}  // namespace filigree
