#include "trainer/teacher.h"

#include <utility>

#include "trainer/export/open_model.h"
#include "trainer/tokenizer_match.h"

namespace filigree {
namespace {

Status CheckTeacher(const CheckpointReader& teacher, const PhaseSpec& phase,
                    const ModelSpec& student) {
  const ModelSpec& model = teacher.info().model;
  const std::string place = teacher.directory() + ": cannot teach phase " + phase.name + ": ";
  if (model.vocab_size != student.vocab_size) {
    return InvalidInput(place + "it has a vocabulary of " + std::to_string(model.vocab_size) +
                        ", the student one of " + std::to_string(student.vocab_size) +
                        "; take a teacher with the student's tokenizer");
  }
  if (model.max_positions < phase.batch.seq_len) {
    return InvalidInput(place + "it has " + std::to_string(model.max_positions) +
                        " positions, batch.seq_len is " + std::to_string(phase.batch.seq_len) +
                        "; shorten the sequences");
  }
  return CheckTokenizerOfData(teacher, phase.data.prepared);
}

}  // namespace

StatusOr<std::unique_ptr<Teacher>> Teacher::Load(const PhaseSpec& phase, Backend& backend,
                                                 Stream& stream) {
  ASSIGN_OR_RETURN(const auto reader, OpenModel(phase.distillation.teacher));
  auto teacher = std::make_unique<Teacher>();
  ASSIGN_OR_RETURN(teacher->loaded_,
                   InferenceModel::Load(*reader, phase.batch.micro_batch_sequences,
                                        phase.batch.seq_len, backend, stream));
  return teacher;
}

void Teacher::Forward(const MicroBatch& batch, Stream& stream) {
  loaded_->model().ForwardHidden(batch, stream);
}

StatusOr<std::map<std::string, CheckpointInfo>> OpenTeachers(const RunSpec& run) {
  std::map<std::string, std::unique_ptr<CheckpointReader>> readers;
  for (const PhaseSpec& phase : run.phases) {
    if (!phase.distillation.on()) continue;
    std::unique_ptr<CheckpointReader>& reader = readers[phase.distillation.teacher];
    if (!reader) {
      ASSIGN_OR_RETURN(reader, OpenModel(phase.distillation.teacher));
    }
    RETURN_IF_ERROR(CheckTeacher(*reader, phase, run.model));
  }
  std::map<std::string, CheckpointInfo> teachers;
  for (const auto& [path, reader] : readers) teachers.emplace(path, reader->info());
  return teachers;
}

TeacherCost CostOfTeacher(const CheckpointInfo& teacher, const BatchSpec& batch, Backend& backend) {
  const auto model = CreateInferenceModel(teacher, backend);
  const DType dtype = backend.device().compute_dtype();
  TeacherCost cost;
  cost.memory_bytes = InferenceLayout(*model).total_count() * static_cast<int64_t>(SizeOf(dtype)) +
                      static_cast<int64_t>(model->ActivationBytes(
                          batch.micro_batch_sequences, batch.seq_len, /*training=*/false));
  for (const Linear* linear : model->linears()) {
    cost.memory_bytes += linear->memory(dtype).compute_copy_bytes;
  }
  cost.flops_per_token = ForwardFlopsPerToken(*model, batch.seq_len).executed;
  return cost;
}

}  // namespace filigree
