#include <gmock/gmock.h>

#include <cmath>
#include <limits>

#include "tests/unit/data_testing.h"
#include "trainer/checkpoint/safetensors.h"

namespace filigree {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string LengthOf(uint64_t length) { return Packed<uint64_t>({length}); }

class SafetensorsTest : public DirectoryTest {
 protected:
  // A file with this header (not padded) and buffer.
  std::string WriteRaw(const std::string& header, const std::string& buffer) const {
    return Write("raw.safetensors", LengthOf(header.size()) + header + buffer);
  }
  void ExpectRefused(const std::string& path, const std::string& reason) const {
    const auto file = SafetensorsFile::Open(path);
    ASSERT_FALSE(file.ok()) << reason;
    EXPECT_EQ(file.status().code(), StatusCode::kInvalidInput);
    EXPECT_THAT(file.status().message(), HasSubstr(path));
    EXPECT_THAT(file.status().message(), HasSubstr(reason));
  }
};

TEST_F(SafetensorsTest, WritesTheGoldenBytes) {
  const int32_t rows[] = {1, -2};
  const BFloat16 values[] = {BFloat16(1.0f), BFloat16(-2.0f), BFloat16(0.5f)};
  ASSERT_TRUE(WriteSafetensors(Path("a"), {{"r", DType::kI32, {2, 1}, rows},
                                           {"e", DType::kF32, {0}, nullptr},
                                           {"v", DType::kBF16, {3}, values}})
                  .ok());
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"r":{"dtype":"I32","shape":[2,1],"data_offsets":[0,8]},)"
      R"("e":{"dtype":"F32","shape":[0],"data_offsets":[8,8]},)"
      R"("v":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]}})";
  const std::string padding((8 - header.size() % 8) % 8, ' ');
  EXPECT_EQ(*ReadFile(Path("a")),
            LengthOf(header.size() + padding.size()) + header + padding +
                std::string("\x01\x00\x00\x00\xfe\xff\xff\xff\x80\x3f\x00\xc0\x00\x3f", 14));
}

TEST_F(SafetensorsTest, ReadsBackWhatItWroteAndHashesIt) {
  const std::vector<float> values = {1.5f, -0.0f, 3e-40f, 7.0f, 8.0f, 9.0f};
  auto writer =
      SafetensorsWriter::Create(Path("a"), {{"x", DType::kF32, {2, 3}}}, {{"step", "12"}});
  ASSERT_TRUE(writer.ok());
  ASSERT_TRUE(writer->Append(values.data(), 24).ok());
  ASSERT_TRUE(writer->Close().ok());
  const std::string bytes = *ReadFile(Path("a"));
  EXPECT_EQ(writer->size(), static_cast<int64_t>(bytes.size()));
  EXPECT_EQ(writer->hash(), Hash64(bytes));
  const auto file = SafetensorsFile::Open(Path("a"));
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_EQ(file->metadata().at("step"), "12");
  const TensorEntry* x = file->Find("x");
  ASSERT_NE(x, nullptr);
  EXPECT_THAT(x->shape, ElementsAre(2, 3));
  EXPECT_EQ(*ReadFloats(*x), values);
  EXPECT_EQ(file->Find("y"), nullptr);
  EXPECT_THAT(ReadElements<int32_t>(*x).status().message(), HasSubstr("is F32, expected I32"));
}

TEST_F(SafetensorsTest, ConvertsEveryFloatFormat) {
  // F16: 1, -2.5, smallest subnormal, largest, infinity, NaN, -0.
  const std::string halves = Packed<uint16_t>({0x3c00, 0xc100, 1, 0x7bff, 0x7c00, 0x7e00, 0x8000});
  const std::string bf16 = Packed<uint16_t>({0x3f80, 0xc020});
  const std::string doubles = Packed<double>({1.0 + 0x1p-24, 0.1});  // a tie, to even
  const auto file =
      SafetensorsFile::Open(WriteRaw(R"({"h":{"dtype":"F16","shape":[7],"data_offsets":[0,14]},)"
                                     R"("b":{"dtype":"BF16","shape":[2],"data_offsets":[14,18]},)"
                                     R"("d":{"dtype":"F64","shape":[2],"data_offsets":[18,34]},)"
                                     R"("s":{"dtype":"I16","shape":[],"data_offsets":[34,36]}})",
                                     halves + bf16 + doubles + "ab"));
  ASSERT_TRUE(file.ok()) << file.status().message();
  const std::vector<float> h = *ReadFloats(*file->Find("h"));
  EXPECT_THAT(std::vector<float>(h.begin(), h.begin() + 5),
              ElementsAre(1.0f, -2.5f, 0x1p-24f, 65504.0f, INFINITY));
  EXPECT_TRUE(std::isnan(h[5]));
  EXPECT_TRUE(h[6] == 0 && std::signbit(h[6]));
  EXPECT_THAT(*ReadFloats(*file->Find("b")), ElementsAre(1.0f, -2.5f));
  EXPECT_THAT(*ReadFloats(*file->Find("d")), ElementsAre(1.0f, 0.1f));
  EXPECT_THAT(ReadFloats(*file->Find("s")).status().message(), HasSubstr("\"s\" is I16"));
}

TEST_F(SafetensorsTest, RefusesWhatIsNoSafetensorsFile) {
  ExpectRefused(Path("missing"), "cannot be opened");
  ExpectRefused(Write("empty", ""), "not a safetensors file");
  ExpectRefused(Write("short", "1234567"), "not a safetensors file");
  ExpectRefused(Write("long_header", LengthOf(100) + "{}"), "header length 100");
  const std::string huge = Write("huge_header", LengthOf(100'000'001) + "{");
  std::filesystem::resize_file(huge, 100'000'009);  // sparse: takes no room
  ExpectRefused(huge, "header length 100000001");
  ExpectRefused(Write("no_brace", LengthOf(3) + " {}"), "not a safetensors file");
  ExpectRefused(WriteRaw(R"({"a":)", ""), "is not valid JSON");
  ExpectRefused(WriteRaw("{}", "x"), "1 bytes after the last tensor belong to none");
}

TEST_F(SafetensorsTest, RefusesEntriesThatContradictThemselves) {
  const auto refused = [&](const std::string& header, const std::string& reason) {
    ExpectRefused(WriteRaw(header, "12345678"), reason);
  };
  const std::string good = R"({"dtype":"U8","shape":[8],"data_offsets":[0,8]})";
  ASSERT_TRUE(SafetensorsFile::Open(WriteRaw("{\"a\":" + good + "}", "12345678")).ok());
  refused("{\"a\":" + good + ",\"a\":" + good + "}", "the key \"a\" occurs twice");
  refused(R"({"a":{"dtype":"U8","shape":[8],"shape":[8],"data_offsets":[0,8]}})",
          "the key \"shape\" occurs twice");
  refused(R"({"a":{"dtype":"Q8","shape":[8],"data_offsets":[0,8]}})", "unknown dtype \"Q8\"");
  refused(R"({"a":{"dtype":"U8","shape":[9],"data_offsets":[0,8]}})",
          "\"a\": U8 [9] does not take 8 bytes");
  refused(R"({"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}})", "do not lie in the file");
  refused(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[8,0]}})", "do not lie in the file");
  refused(R"({"a":{"dtype":"U8","shape":[-8],"data_offsets":[0,8]}})", "the header entry is not");
  refused(R"({"a":{"dtype":"U8","shape":[8]}})", "the header entry is not");
  refused(R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8],"x":1}})", "header entry is not");
  refused(R"({"a":{"dtype":"F64","shape":[4611686018427387905,4],"data_offsets":[0,8]}})",
          "does not take 8 bytes");
  refused(R"({"a":{"dtype":"U8","shape":[5],"data_offsets":[0,5]},)"
          R"("b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
          "\"b\" overlaps");
  refused(R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},)"
          R"("b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
          "\"b\" leaves a hole");
  refused("{\"a\":" + good + R"(,"__metadata__":{"format":1}})", "\"format\" is not a string");
}

class SafetensorsSetTest : public SafetensorsTest {
 protected:
  SafetensorsSetTest() {
    const int32_t one = 1;
    EXPECT_TRUE(WriteSafetensors(Path("a.st"), {{"x", DType::kI32, {1}, &one}}).ok());
    EXPECT_TRUE(WriteSafetensors(Path("b.st"), {{"y", DType::kI32, {1}, &one}}).ok());
  }
  void WriteIndex(const std::string& map) const {
    Write(kSafetensorsIndexName, R"({"metadata":{},"weight_map":)" + map + "}");
  }
  std::string Refusal() const { return SafetensorsSet::Open(directory_).status().message(); }
};

TEST_F(SafetensorsSetTest, FindsTensorsThroughTheIndex) {
  EXPECT_THAT(Refusal(), HasSubstr("has neither model.safetensors nor"));
  WriteIndex(R"({"x":"a.st","y":"b.st"})");
  const auto set = SafetensorsSet::Open(directory_);
  ASSERT_TRUE(set.ok()) << set.status().message();
  ASSERT_NE(set->Find("y"), nullptr);
  EXPECT_EQ(set->Find("y")->file, Path("b.st"));
  EXPECT_EQ(set->Find("z"), nullptr);
}

TEST_F(SafetensorsSetTest, IndexAndFilesMustAgree) {
  WriteIndex(R"({"x":"a.st","y":"a.st","z":"b.st"})");
  EXPECT_THAT(Refusal(), HasSubstr("tensor \"y\" is not where"));
  WriteIndex(R"({"x":"a.st","y":"b.st","z":"b.st"})");
  EXPECT_THAT(Refusal(), HasSubstr("tensor \"z\" is not in b.st"));
  WriteIndex(R"({"x":"../a.st"})");
  EXPECT_THAT(Refusal(), HasSubstr("\"../a.st\" is not a file of this directory"));
  WriteIndex(R"({"x":"c.st"})");
  EXPECT_THAT(Refusal(), HasSubstr("c.st: cannot be opened"));
}

}  // namespace
}  // namespace filigree
