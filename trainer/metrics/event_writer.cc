#include "trainer/metrics/event_writer.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>

namespace filigree {
namespace {

// Little-endian, as are the machines that this builds for.
static_assert(std::endian::native == std::endian::little);

template <typename T>
void AppendRaw(std::string* out, T value) {
  out->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

constexpr std::array<uint32_t, 256> MakeCrcTable() {
  constexpr uint32_t kReflectedPolynomial = 0x82F63B78;
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? kReflectedPolynomial : 0);
    table[i] = crc;
  }
  return table;
}

// Protobuf's wire format.
enum WireType { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

void AppendVarint(std::string* out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out->push_back(static_cast<char>(value | 0x80));
  out->push_back(static_cast<char>(value));
}

void AppendKey(std::string* out, int field, WireType type) {
  AppendVarint(out, static_cast<uint64_t>(field) << 3 | type);
}

void AppendBytes(std::string* out, int field, std::string_view bytes) {
  AppendKey(out, field, kBytes);
  AppendVarint(out, bytes.size());
  out->append(bytes);
}

// Event { 1: wall_time, 2: step, 3: file_version, 5: Summary { 1: Value { 1: tag, 2: value } } }.
std::string EventWithTime(double wall_time) {
  std::string event;
  AppendKey(&event, 1, kFixed64);
  AppendRaw(&event, wall_time);
  return event;
}

std::string ToRecord(const std::string& data) {
  std::string record;
  AppendRaw(&record, static_cast<uint64_t>(data.size()));
  AppendRaw(&record, MaskedCrc32c(record));
  record += data;
  AppendRaw(&record, MaskedCrc32c(data));
  return record;
}

double Now() {
  const auto since_epoch = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration<double>(since_epoch).count();
}

// TensorBoard reads the files of a directory in the order of their names: the time, then a number
// that two writers of one second and one process do not share.
std::string FileName() {
  static std::atomic<int> writers = 0;
  char host[256] = "localhost";
  gethostname(host, sizeof(host) - 1);
  char time[32];
  std::snprintf(time, sizeof(time), "%010lld", static_cast<long long>(Now()));
  return std::string("events.out.tfevents.") + time + "." + host + "." + std::to_string(getpid()) +
         "." + std::to_string(writers++);
}

}  // namespace

uint32_t Crc32c(std::string_view bytes) {
  static constexpr std::array<uint32_t, 256> kTable = MakeCrcTable();
  uint32_t crc = ~0u;
  for (const char byte : bytes) {
    crc = (crc >> 8) ^ kTable[(crc ^ static_cast<uint8_t>(byte)) & 0xff];
  }
  return ~crc;
}

uint32_t MaskedCrc32c(std::string_view bytes) { return std::rotr(Crc32c(bytes), 15) + 0xa282ead8u; }

std::string FileVersionRecord(double wall_time) {
  std::string event = EventWithTime(wall_time);
  AppendBytes(&event, 3, "brain.Event:2");
  return ToRecord(event);
}

std::string ScalarRecord(double wall_time, int64_t step, std::string_view tag, float value) {
  std::string scalar, summary;
  AppendBytes(&scalar, 1, tag);
  AppendKey(&scalar, 2, kFixed32);
  AppendRaw(&scalar, value);
  AppendBytes(&summary, 1, scalar);
  std::string event = EventWithTime(wall_time);
  AppendKey(&event, 2, kVarint);
  AppendVarint(&event, static_cast<uint64_t>(step));
  AppendBytes(&event, 5, summary);
  return ToRecord(event);
}

StatusOr<std::unique_ptr<EventWriter>> EventWriter::Create(const std::string& directory) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) return InvalidInput(directory + ": cannot be created (" + error.message() + ")");
  const std::string path = directory + "/" + FileName();
  File file(std::fopen(path.c_str(), "wbx"));
  if (!file) return InvalidInput(path + ": cannot be created (" + std::strerror(errno) + ")");
  std::unique_ptr<EventWriter> writer(new EventWriter(path, std::move(file)));
  RETURN_IF_ERROR(writer->WriteRecord(FileVersionRecord(Now())));
  return writer;
}

Status EventWriter::WriteScalar(int64_t step, std::string_view tag, double value) {
  return WriteRecord(ScalarRecord(Now(), step, tag, static_cast<float>(value)));
}

Status EventWriter::WriteRecord(const std::string& record) {
  if (std::fwrite(record.data(), 1, record.size(), file_.get()) == record.size()) return OkStatus();
  return MachineError(path_ + ": cannot be written (" + std::strerror(errno) +
                      "); free some space and resume the run");
}

Status EventWriter::Flush() {
  if (std::fflush(file_.get()) == 0) return OkStatus();
  return MachineError(path_ + ": cannot be written (" + std::strerror(errno) +
                      "); free some space and resume the run");
}

}  // namespace filigree
