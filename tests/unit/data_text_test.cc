// Tokenizers and text input.
#include <gmock/gmock.h>
#include <zlib.h>
#include <zstd.h>

#include "data/text_input.h"
#include "data/tokenizer.h"
#include "data_testing.h"

namespace filigree {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

// Awkward for tokenizers: line ends, tabs, runs of spaces, other scripts, control bytes.
const char* const kAwkward[] = {
    "plain words, twice plain words.",
    "def f(x):\n\tif x:\r\n        return  x\n\n\n# done\n",
    " leading and trailing  ",
    "caf\u00e9 \u65e5\u672c\u8a9e \U0001F642 \u00df",
    "\x01\x7f 3.14159 2024",
    "\n",
    "",
};

std::vector<std::string> SampleBlocks() {
  std::vector<std::string> blocks;
  for (int i = 0; i < 200; ++i) {
    blocks.push_back("The quick brown fox number " + std::to_string(i) +
                     " jumps over the lazy dog.\n    indented  twice\n\tand tabbed: caf\u00e9\n");
  }
  return blocks;
}

std::string SampleText() {
  std::string text;
  for (const std::string& block : SampleBlocks()) text += block;
  return text;
}

class TextTest : public DirectoryTest {
 protected:
  static std::unique_ptr<Tokenizer> Trained(int32_t vocab_size) {
    auto model = TrainSentencePieceModel(SampleBlocks(), vocab_size);
    CHECK(model.ok()) << model.status().message();
    auto tokenizer = MakeSentencePieceTokenizer(*model, "trained");
    CHECK(tokenizer.ok()) << tokenizer.status().message();
    return std::move(tokenizer).value();
  }

  // All documents of the inputs, or the message of the error.
  struct Texts {
    std::vector<std::string> texts, places;
    TextInputCounts counts;
    std::string error;
  };
  static Texts ReadTexts(const std::vector<std::string>& inputs, const std::string& key = "text") {
    Texts result;
    const auto fail = [&](const Status& status) {
      EXPECT_EQ(status.exit_code(), 2);
      result.error = status.message();
      return result;
    };
    const auto input = TextInput::Open(inputs, key);
    if (!input.ok()) return fail(input.status());
    const auto counts = input->ForEachDocument([&](Document document) {
      result.texts.push_back(document.text);
      result.places.push_back(document.place);
      EXPECT_LE(document.input_bytes_read, input->bytes());
      return OkStatus();
    });
    if (!counts.ok()) return fail(counts.status());
    result.counts = *counts;
    return result;
  }
};

std::string Gzip(const std::string& text) {
  z_stream stream = {};
  CHECK_EQ(deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string out(text.size() + 100, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = text.size();
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = out.size();
  CHECK_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

std::string Zstd(const std::string& text) {
  std::string out(ZSTD_compressBound(text.size()), '\0');
  out.resize(ZSTD_compress(out.data(), out.size(), text.data(), text.size(), 3));
  return out;
}

TEST_F(TextTest, BytesRoundTrip) {
  const auto tokenizer = MakeByteTokenizer();
  EXPECT_EQ(tokenizer->vocab_size(), 257);
  EXPECT_EQ(tokenizer->delimiter_id(), 256);
  for (const char* text : kAwkward) {
    EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(text)), text);
  }
  EXPECT_THAT(tokenizer->Encode("A\xff\n"), ElementsAre(65, 255, 10));
  EXPECT_EQ(tokenizer->Decode(std::vector<int32_t>{256, 72, 105, 300, -1, 256}), "Hi\uFFFD\uFFFD");
  // Exported checkpoints carry these bytes, and manifests their hash.
  EXPECT_EQ(tokenizer->hash(), "0c7282dfa940467c");
}

TEST_F(TextTest, TrainedSentencePieceRoundTripsWithLlamasIds) {
  const auto tokenizer = Trained(400);
  EXPECT_EQ(tokenizer->vocab_size(), 400);
  EXPECT_EQ(tokenizer->bos_id(), 1);
  EXPECT_EQ(tokenizer->eos_id(), 2);
  EXPECT_EQ(tokenizer->delimiter_id(), 1);
  for (const char* text : kAwkward) {
    const std::vector<int32_t> ids = tokenizer->Encode(text);
    EXPECT_EQ(tokenizer->Decode(ids), text);
    for (int32_t id : ids) EXPECT_GE(id, 3) << "an unknown or control id in " << text;
  }
  EXPECT_LT(tokenizer->Encode("The quick brown fox").size(), 10u) << "it learnt something";
  std::vector<int32_t> ids = tokenizer->Encode("fox");
  ids.insert(ids.begin(), {1, 2});
  ids.push_back(4000);
  EXPECT_EQ(tokenizer->Decode(ids), "fox\uFFFD");
  EXPECT_EQ(Trained(400)->hash(), tokenizer->hash()) << "training is deterministic";
}

TEST_F(TextTest, LongTextIsEncodedInSegmentsAsIfWhole) {
  const auto tokenizer = Trained(400);
  std::string text;
  while (text.size() < 200000) text += SampleText();
  std::vector<int32_t> lines;
  for (size_t begin = 0; begin < text.size();) {
    // Cut by hand before every "the lazy": far more often than the tokenizer does by itself.
    size_t end = text.find(" the lazy", begin);
    if (end == std::string::npos) end = text.size();
    const auto part = tokenizer->Encode(text.substr(begin, end - begin));
    lines.insert(lines.end(), part.begin(), part.end());
    begin = end + 1;
  }
  EXPECT_EQ(tokenizer->Encode(text), lines);
  EXPECT_EQ(tokenizer->Decode(lines), text);
}

TEST_F(TextTest, TrainingRefusesImpossibleVocabularies) {
  for (int32_t vocab_size : {100, 100000}) {
    const auto model = TrainSentencePieceModel(SampleBlocks(), vocab_size);
    ASSERT_FALSE(model.ok());
    EXPECT_EQ(model.status().exit_code(), 2);
    EXPECT_THAT(model.status().message(),
                HasSubstr("train-sentencepiece:" + std::to_string(vocab_size)));
    EXPECT_THAT(model.status().message(), Not(HasSubstr("trainer_interface")));
    // The limit that the message names is the limit.
    const std::string words = vocab_size == 100 ? "at least " : "at most ";
    const size_t found = model.status().message().find(words);
    ASSERT_NE(found, std::string::npos) << model.status().message();
    const int limit = std::atoi(model.status().message().c_str() + found + words.size());
    EXPECT_TRUE(TrainSentencePieceModel(SampleBlocks(), limit).ok()) << limit;
    const int beyond = vocab_size == 100 ? limit - 1 : limit + 1;
    EXPECT_FALSE(TrainSentencePieceModel(SampleBlocks(), beyond).ok()) << beyond;
  }
  const auto garbage = MakeSentencePieceTokenizer("garbage", "some/tokenizer.model");
  ASSERT_FALSE(garbage.ok());
  EXPECT_THAT(garbage.status().message(),
              HasSubstr("some/tokenizer.model: not a SentencePiece model"));
}

TEST_F(TextTest, LoadsTheTokenizerOfADirectory) {
  const auto trained = Trained(330);
  Write("hf/tokenizer.model", trained->file_bytes());
  Write("bytes/tokenizer.json", MakeByteTokenizer()->file_bytes());
  Write("other/tokenizer.json", "{}");
  EXPECT_EQ((*LoadTokenizer(Path("hf")))->hash(), trained->hash());
  EXPECT_EQ((*LoadTokenizer(Path("bytes")))->name(), "byte");
  EXPECT_THAT(LoadTokenizer(Path("other")).status().message(), HasSubstr("byte tokenizer"));
  EXPECT_THAT(LoadTokenizer(Path("none")).status().message(), HasSubstr("holds no tokenizer"));
}

TEST_F(TextTest, DirectoriesAreWalkedThroughSymlinksEachFileOnce) {
  const std::string b = Write("tree/sub/b.rst.txt", "B");
  Write("tree/a.md", "A");
  Write("tree/c.png", "not text");
  fs::create_symlink(b, Path("tree/copy.txt"));
  fs::create_directory_symlink(Path("tree"), Path("tree/sub/loop"));
  const std::string outside = Write("elsewhere/d.txt", "D");
  fs::create_directory_symlink(Path("elsewhere"), Path("tree/more"));
  const Texts texts = ReadTexts({Path("tree")});
  EXPECT_THAT(texts.texts, ElementsAre("D", "A", "B"));
  const auto input = TextInput::Open({Path("tree"), Path("tree/*.md"), Path("tree")}, "text");
  ASSERT_TRUE(input.ok());
  EXPECT_EQ(input->files().size(), 3u);
  EXPECT_EQ(input->duplicate_paths(), 4) << "copy.txt, loop, *.md, the tree again";
}

TEST_F(TextTest, KeepsLineEndsReplacesInvalidUtf8SkipsEmpty) {
  Write("a.txt", "one\r\ntwo\r\n");
  Write("b.txt", "x\xff\xc3(\xe2\x82 \xed\xa0\x80 \xf0\x9f\x99\x82 \xc0\x80");
  Write("c.txt", "");
  const Texts texts = ReadTexts({Path("*.txt")});
  EXPECT_THAT(texts.texts,
              ElementsAre("one\r\ntwo\r\n",
                          "x\uFFFD\uFFFD(\uFFFD\uFFFD \uFFFD\uFFFD\uFFFD \U0001F642 \uFFFD\uFFFD"));
  EXPECT_EQ(texts.counts.replaced_bytes, 9);
  EXPECT_EQ(texts.counts.documents_replaced, 1);
  EXPECT_EQ(texts.counts.empty_documents, 1);
}

TEST_F(TextTest, ReadsJsonLinesPlainAndCompressed) {
  const std::string lines =
      "{\"text\": \"first\\nline\", \"id\": 1}\n\n{\"id\": 2, \"text\": \"second \\u00e9\"}\r\n"
      "{\"text\": \"\"}\n{\"text\": \"no line end\"}";
  Write("a.jsonl", lines);
  Write("b.jsonl.gz", Gzip(lines));
  Write("c.json.zst", Zstd(lines));
  Write("d.txt.gz", Gzip("one ") + Gzip("document"));  // two members, one file
  Write("e.txt.zst", Zstd("one ") + Zstd("document"));
  for (const char* name : {"a.jsonl", "b.jsonl.gz", "c.json.zst"}) {
    const Texts texts = ReadTexts({Path(name)});
    EXPECT_THAT(texts.texts, ElementsAre("first\nline", "second \u00e9", "no line end")) << name;
    EXPECT_THAT(texts.places[1], HasSubstr(std::string(name) + ":3"));
  }
  EXPECT_THAT(ReadTexts({Path("d.txt.gz"), Path("e.txt.zst")}).texts,
              ElementsAre("one document", "one document"));
}

TEST_F(TextTest, StreamsLinesAcrossBuffers) {
  std::string lines;
  for (int i = 0; i < 5; ++i) {
    lines += "{\"text\": \"" + std::string(200000, static_cast<char>('a' + i)) + "\"}\n";
  }
  const std::vector<std::string> files = {Write("a.jsonl", lines), Write("b.jsonl.gz", Gzip(lines)),
                                          Write("c.jsonl.zst", Zstd(lines))};
  for (const std::string& file : files) {
    const Texts texts = ReadTexts({file});
    ASSERT_EQ(texts.texts.size(), 5u) << file;
    for (int i = 0; i < 5; ++i) {
      EXPECT_EQ(texts.texts[i], std::string(200000, static_cast<char>('a' + i))) << file;
    }
  }
}

TEST_F(TextTest, NamesTheLineOfBadInput) {
  EXPECT_THAT(ReadTexts({Write("a.jsonl", "{\"text\": \"x\"}\n{\"text\": \n")}).error,
              AllOf(HasSubstr("a.jsonl:2: is not valid JSON")));
  EXPECT_THAT(ReadTexts({Write("b.jsonl", "{\"content\": \"x\", \"n\": 3}\n")}).error,
              AllOf(HasSubstr("b.jsonl:1: has no string \"text\""), HasSubstr("are: content"),
                    HasSubstr("--json-key")));
  EXPECT_THAT(ReadTexts({Path("b.jsonl")}, "content").texts, ElementsAre("x"));
  EXPECT_THAT(ReadTexts({Write("c.jsonl", "[1, 2]\n")}).error, HasSubstr("is no JSON object"));
  const std::string gz = Gzip(SampleText()), zst = Zstd(SampleText());
  EXPECT_THAT(ReadTexts({Write("d.txt.gz", gz.substr(0, gz.size() / 2))}).error,
              HasSubstr("d.txt.gz: damaged or truncated"));
  EXPECT_THAT(ReadTexts({Write("e.txt.zst", zst.substr(0, zst.size() / 2))}).error,
              HasSubstr("e.txt.zst: damaged or truncated"));
  EXPECT_THAT(ReadTexts({Path("none*")}).error, HasSubstr("none*: no such file"));
  Write("pictures/a.png", "x");
  EXPECT_THAT(ReadTexts({Path("pictures")}).error, HasSubstr("no text in it"));
  fs::create_symlink(Path("gone"), Path("broken.txt"));
  EXPECT_THAT(ReadTexts({Path("broken.txt")}).error, HasSubstr("broken.txt: "));
}

}  // namespace
}  // namespace filigree
