// A small checkpoint and its export.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "tests/unit/export_testing.h"
#include "trainer/export/huggingface_export.h"

namespace filigree {

class ExportTest : public DirectoryTest {
 protected:
  // Writes a checkpoint of the model and exports it to out/.
  Status Export(ModelFamily family, bool tied_head, const ExportOptions& options = {},
                const std::string& tokenizer_dir = "") {
    info_ = SmallInfo(family, tied_head, /*sparse=*/true);
    if (!std::filesystem::exists(Path("c")))
      RETURN_IF_ERROR(WriteSmall(Path("c"), info_, tokenizer_dir));
    ASSIGN_OR_RETURN(const auto reader, CheckpointReader::Open(Path("c")));
    return ExportHuggingFace(*reader, Path("out"), options);
  }
  void ExportOk(ModelFamily family, bool tied_head, const ExportOptions& options = {},
                const std::string& tokenizer_dir = "") {
    const Status status = Export(family, tied_head, options, tokenizer_dir);
    ASSERT_TRUE(status.ok()) << status.message();
  }
  const Parameter& Find(const std::string& name) const {
    for (const Parameter& parameter : info_.parameters) {
      if (parameter.name == name) return parameter;
    }
    ADD_FAILURE() << "no parameter " << name;
    return info_.parameters[0];
  }
  std::vector<float> Dense(const std::string& name) const { return DenseOf(Find(name)); }

  CheckpointInfo info_;
};

inline constexpr ExportOptions kF32 = {.dtype = DType::kF32};

}  // namespace filigree
