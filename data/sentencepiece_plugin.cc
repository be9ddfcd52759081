#include "data/sentencepiece_plugin.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <exception>
#include <memory>
#include <unordered_map>

namespace filigree {
namespace {

class Model : public SentencePieceModel {
 public:
  sentencepiece::util::Status Load(std::string_view bytes) {
    return processor_.LoadFromSerializedProto({bytes.data(), bytes.size()});
  }

  int32_t size() const override { return processor_.GetPieceSize(); }
  int32_t bos_id() const override { return processor_.bos_id(); }
  int32_t eos_id() const override { return processor_.eos_id(); }

  void Encode(std::string_view text, std::vector<int32_t>* ids) const override {
    const std::vector<int> part = processor_.EncodeAsIds({text.data(), text.size()});
    ids->insert(ids->end(), part.begin(), part.end());
  }

  std::string Decode(const std::vector<int32_t>& ids) const override {
    return processor_.DecodeIds(ids);
  }

 private:
  sentencepiece::SentencePieceProcessor processor_;
};

class PieceIterator : public sentencepiece::SentenceIterator {
 public:
  explicit PieceIterator(const std::vector<std::string>& pieces) : pieces_(pieces) {}
  bool done() const override { return next_ == pieces_.size(); }
  void Next() override { ++next_; }
  const std::string& value() const override { return pieces_[next_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  const std::vector<std::string>& pieces_;
  size_t next_ = 0;
};

SentencePieceModel* Load(std::string_view model_bytes, std::string* error) {
  auto model = std::make_unique<Model>();
  const auto status = model->Load(model_bytes);
  if (status.ok()) return model.release();
  *error = status.ToString();
  return nullptr;
}

bool Train(const std::vector<std::pair<std::string, std::string>>& options,
           const std::vector<std::string>& pieces, std::string* model_bytes, std::string* error) {
  PieceIterator iterator(pieces);
  const std::unordered_map<std::string, std::string> arguments(options.begin(), options.end());
  const auto status = sentencepiece::SentencePieceTrainer::Train(arguments, &iterator, model_bytes);
  *error = status.ok() ? "" : status.ToString();
  return status.ok();
}

}  // namespace
}  // namespace filigree

extern "C" __attribute__((visibility("default")))
const filigree::SentencePiecePlugin filigree_sentencepiece_plugin = {filigree::Load,
                                                                     filigree::Train};
