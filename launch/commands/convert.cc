// export, import, soup, inspect, report: commands that move files and compute nothing.
#include <cstdio>

#include "kernels/base/log.h"
#include "launch/commands/commands.h"
#include "trainer/checkpoint/soup.h"
#include "trainer/export/huggingface_export.h"
#include "trainer/export/huggingface_import.h"
#include "trainer/export/inspect.h"
#include "trainer/export/sltrain_checkpoint.h"
#include "trainer/report/report.h"

namespace filigree {

Status ExportCommand::Run() const {
  ASSIGN_OR_RETURN(const std::string checkpoint, ResolveCheckpoint(what));
  ASSIGN_OR_RETURN(const auto reader, CheckpointReader::Open(checkpoint));
  if (format == "sltrain") {
    RETURN_IF_ERROR(ExportSltrain(*reader, out, dtype == "f32" ? DType::kF32 : DType::kBF16));
    LogInfo("exported " + checkpoint + " to " + out + " as SLTrain stores it");
    return OkStatus();
  }
  ExportOptions options;
  options.dtype = dtype == "f32" ? DType::kF32 : DType::kBF16;
  options.padded = padded;
  RETURN_IF_ERROR(ExportHuggingFace(*reader, out, options));
  LogInfo("exported " + checkpoint + " to " + out);
  return OkStatus();
}

Status ImportCommand::Run() const {
  RETURN_IF_ERROR(ImportHuggingFace(hf_dir, out));
  LogInfo("imported " + hf_dir + " to " + out);
  return OkStatus();
}

Status SoupCommand::Run() const {
  RETURN_IF_ERROR(AverageCheckpoints(checkpoints, out));
  LogInfo("averaged " + std::to_string(checkpoints.size()) + " checkpoints into " + out);
  return OkStatus();
}

Status InspectCommand::Run() const {
  ASSIGN_OR_RETURN(const std::string text, InspectPath(path));
  std::fputs(text.c_str(), stdout);
  return OkStatus();
}

Status ReportCommand::Run() const {
  RETURN_IF_ERROR(WriteReport(runs, out));
  LogInfo("wrote " + out);
  return OkStatus();
}

}  // namespace filigree
