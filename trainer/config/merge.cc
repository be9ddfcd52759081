#include "trainer/config/merge.h"

#include <google/protobuf/descriptor.h>

#include <string>
#include <utility>
#include <vector>

#include "kernels/base/check.h"

namespace filigree::config {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

void SetScalar(const Message& from, const FieldDescriptor* field, Message* to) {
  const Reflection& get = *from.GetReflection();
  const Reflection& set = *to->GetReflection();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return set.SetInt32(to, field, get.GetInt32(from, field));
    case FieldDescriptor::CPPTYPE_INT64:
      return set.SetInt64(to, field, get.GetInt64(from, field));
    case FieldDescriptor::CPPTYPE_UINT64:
      return set.SetUInt64(to, field, get.GetUInt64(from, field));
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return set.SetDouble(to, field, get.GetDouble(from, field));
    case FieldDescriptor::CPPTYPE_BOOL:
      return set.SetBool(to, field, get.GetBool(from, field));
    case FieldDescriptor::CPPTYPE_STRING:
      return set.SetString(to, field, get.GetString(from, field));
    case FieldDescriptor::CPPTYPE_ENUM:
      return set.SetEnumValue(to, field, get.GetEnumValue(from, field));
    default:
      CHECK(false) << "run.proto uses a scalar type that merging does not know: "
                   << field->full_name();
  }
}

void ClearReplacedAlternative(const Message& from, Message* to) {
  static constexpr std::pair<const char*, const char*> kAlternatives[] = {
      {"warmup_steps", "warmup_fraction"}, {"warmup_fraction", "warmup_steps"}};
  for (const auto& [given, replaced] : kAlternatives) {
    const FieldDescriptor* field = from.GetDescriptor()->FindFieldByName(given);
    if (!field || !from.GetReflection()->HasField(from, field)) continue;
    to->GetReflection()->ClearField(to, from.GetDescriptor()->FindFieldByName(replaced));
  }
}

}  // namespace

void MergeFields(const Message& from, Message* to) {
  ClearReplacedAlternative(from, to);
  const Reflection& reflection = *to->GetReflection();
  std::vector<const FieldDescriptor*> fields;
  from.GetReflection()->ListFields(from, &fields);
  for (const FieldDescriptor* field : fields) {
    if (field->is_repeated()) {
      std::unique_ptr<Message> list(from.New());
      list->CopyFrom(from);
      reflection.ClearField(to, field);
      reflection.SwapFields(list.get(), to, {field});
    } else if (field->message_type()) {
      MergeFields(from.GetReflection()->GetMessage(from, field),
                  reflection.MutableMessage(to, field));
    } else {
      SetScalar(from, field, to);
    }
  }
}

void FillDefaults(Message* message) {
  for (int i = 0; i < message->GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor* field = message->GetDescriptor()->field(i);
    if (field->is_repeated() || field->message_type() || !field->has_default_value()) continue;
    // Reading an unset field gives its default.
    if (!message->GetReflection()->HasField(*message, field)) SetScalar(*message, field, message);
  }
}

}  // namespace filigree::config
