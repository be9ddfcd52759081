#include "trainer/config/parse.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <regex>

namespace filigree::config {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::EnumDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::TextFormat;

struct ParseError {
  int line = 0, column = 0;  // from 0, tabs expanded as the tokenizer does
  std::string message;
};

// The parser keeps going after an unknown field only if it may call it a warning; here both are
// errors.
class ErrorList : public google::protobuf::io::ErrorCollector {
 public:
  void AddError(int line, google::protobuf::io::ColumnNumber column,
                const std::string& message) override {
    errors.push_back({line, column, message});
  }
  void AddWarning(int line, google::protobuf::io::ColumnNumber column,
                  const std::string& message) override {
    warnings.push_back({line, column, message});
  }
  std::vector<ParseError> errors, warnings;
};

size_t OffsetOf(const std::string& text, const ParseError& error) {
  constexpr int kTabWidth = 8;  // of the tokenizer
  int line = 0, column = 0;
  size_t i = 0;
  for (; i < text.size() && (line < error.line || column < error.column); ++i) {
    if (text[i] == '\n') {
      if (line == error.line) break;
      ++line;
      column = 0;
    } else {
      column += text[i] == '\t' ? kTabWidth - column % kTabWidth : 1;
    }
  }
  return i;
}

int LineAt(const std::string& text, size_t offset) {
  return 1 + static_cast<int>(std::count(text.begin(), text.begin() + offset, '\n'));
}

// Enum fields have different names throughout the schema.
const EnumDescriptor* FindEnum(const Descriptor& message, const std::string& field_name) {
  for (int i = 0; i < message.field_count(); ++i) {
    const FieldDescriptor& field = *message.field(i);
    if (field.enum_type() && field.name() == field_name) return field.enum_type();
    if (field.message_type()) {
      const EnumDescriptor* found = FindEnum(*field.message_type(), field_name);
      if (found) return found;
    }
  }
  return nullptr;
}

// Replaces the token at `offset`, so that the parse can go on behind it.
void ReplaceToken(std::string* text, size_t offset, const std::string& replacement) {
  const char first = (*text)[offset];
  const bool quoted = first == '"' || first == '\'';
  size_t end =
      quoted ? text->find(first, offset + 1) : text->find_first_of(" \t\r\n,;}]>#", offset + 1);
  if (end == std::string::npos) end = text->size();
  if (quoted && end < text->size()) ++end;
  text->replace(offset, end - offset, replacement);
}

struct Repair {
  int line = 0;  // of the bad value, from 1; 0: the error is not inside a value
  std::string message;
};

// Errors about a name that was already consumed point behind it, maybe at the next line.
Repair RepairNamedValue(std::string* text, const ParseError& error) {
  static const std::regex* const enum_value =
      new std::regex(R"re(Unknown enumeration value of "([^"]*)" for field "([^"]*)"\.)re");
  static const std::regex* const bool_value =
      new std::regex(R"re(Invalid value for boolean field "([^"]*)"\. Value: "([^"]*)"\.)re");
  std::smatch match;
  std::string value, replacement, message;
  if (std::regex_match(error.message, match, *enum_value)) {
    const EnumDescriptor* type = FindEnum(*RunConfig::descriptor(), match[2]);
    if (!type) return {};
    std::vector<std::string> known;
    for (int i = 0; i < type->value_count(); ++i) known.push_back(type->value(i)->name());
    value = match[1];
    replacement = known.front();
    message = "unknown value \"" + value + "\" of " + match[2].str() + SuggestName(value, known);
  } else if (std::regex_match(error.message, match, *bool_value)) {
    value = match[2];
    replacement = "false";
    message = match[1].str() + " must be true or false, is " + value;
  } else {
    return {};
  }
  const size_t behind = OffsetOf(*text, error);
  const size_t at = behind == 0 ? std::string::npos : text->rfind(value, behind - 1);
  if (at == std::string::npos) return {};
  const int line = LineAt(*text, at);
  ReplaceToken(text, at, replacement);
  return {line, message};
}

Repair RepairValue(std::string* text, const ParseError& error) {
  static constexpr std::pair<const char*, const char*> kReplacements[] = {
      {"Expected integer", "0"},
      {"Integer out of range", "0"},
      {"Expected double", "0"},
      {"Expected string", "\"\""},
      {"Invalid float number", "0"}};
  for (const auto& [prefix, replacement] : kReplacements) {
    if (error.message.rfind(prefix, 0) != 0) continue;
    const size_t offset = OffsetOf(*text, error);
    if (offset >= text->size()) return {};
    const int line = LineAt(*text, offset);
    ReplaceToken(text, offset, replacement);
    return {line, error.message};
  }
  return RepairNamedValue(text, error);
}

// "Message type "filigree.BatchConfig" has no field named "seq"." -> the names it does have.
std::string ExplainUnknownField(const std::string& message) {
  static const std::regex* const pattern =
      new std::regex(R"re(Message type "([^"]*)" has no field named "([^"]*)"\.)re");
  std::smatch match;
  if (!std::regex_match(message, match, *pattern)) return message;
  const Descriptor* type = RunConfig::descriptor()->file()->pool()->FindMessageTypeByName(match[1]);
  if (!type) return message;
  std::vector<std::string> known;
  for (int i = 0; i < type->field_count(); ++i) known.push_back(type->field(i)->name());
  return "unknown field \"" + match[2].str() + "\" in " + type->name() +
         SuggestName(match[2], known);
}

void NoteOrigins(const Message& message, TextFormat::ParseInfoTree* tree, int source,
                 const std::string& prefix, Origins* origins) {
  std::vector<const FieldDescriptor*> fields;
  message.GetReflection()->ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    const bool repeated = field->is_repeated();
    const int count = repeated ? message.GetReflection()->FieldSize(message, field) : 1;
    if (repeated) origins->EraseList(prefix + field->name());
    for (int i = 0; i < count; ++i) {
      const int index = repeated ? i : -1;
      const std::string path =
          prefix + field->name() + (repeated ? "[" + std::to_string(i) + "]" : "");
      origins->Set(path, {source, tree->GetLocation(field, index).line + 1});
      if (!field->message_type()) continue;
      const Message& nested = repeated
                                  ? message.GetReflection()->GetRepeatedMessage(message, field, i)
                                  : message.GetReflection()->GetMessage(message, field);
      NoteOrigins(nested, tree->GetTreeForNested(field, index), source, path + ".", origins);
    }
  }
}

int EditDistance(const std::string& a, const std::string& b) {
  std::vector<int> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = static_cast<int>(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    int diagonal = row[0];
    row[0] = static_cast<int>(i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const int substituted = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({substituted, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row.back();
}

// Empty where none is close.
std::string ClosestName(const std::string& name, const std::vector<std::string>& known) {
  std::string closest;
  int best = std::max<int>(2, static_cast<int>(name.size()) / 2);
  for (const std::string& candidate : known) {
    // "seq" for "seq_len": one inside the other is close whatever the distance.
    const bool contained = name.size() > 2 && (candidate.find(name) != std::string::npos ||
                                               name.find(candidate) != std::string::npos);
    const int distance = contained ? 1 : EditDistance(name, candidate);
    if (distance < best) {
      best = distance;
      closest = candidate;
    }
  }
  return closest;
}

std::string JoinNames(const std::vector<std::string>& names) {
  std::string joined;
  for (const std::string& name : names) joined += (joined.empty() ? "" : ", ") + name;
  return joined;
}

}  // namespace

std::string SuggestName(const std::string& name, const std::vector<std::string>& known) {
  const std::string closest = ClosestName(name, known);
  return (closest.empty() ? std::string("; known names are ")
                          : "; did you mean \"" + closest + "\"? Known names are ") +
         JoinNames(known);
}

bool ParseSource(const std::string& original, int source, RunConfig* config, Origins* origins,
                 Problems* problems) {
  std::string text = original;
  // Each round repairs one bad value of the text, which then no longer stops the parse. The limit
  // guards against a repair that does not help.
  for (int round = 0;; ++round) {
    ErrorList list;
    TextFormat::ParseInfoTree tree;
    TextFormat::Parser parser;
    parser.RecordErrorsTo(&list);
    parser.WriteLocationsTo(&tree);
    parser.AllowUnknownField(true);
    const bool complete = parser.ParseFromString(text, config);
    if (!complete && !list.errors.empty() && round < 100) {
      const Repair repair = RepairValue(&text, list.errors.front());
      if (repair.line > 0) {
        problems->AddSyntax({source, repair.line}, repair.message);
        continue;
      }
    }
    for (const ParseError& error : list.errors) {
      const bool at_end = error.message.ends_with("got: ");
      problems->AddSyntax(
          {source, error.line + 1},
          at_end ? "the text ends inside a message; is a } missing?" : error.message);
    }
    for (const ParseError& warning : list.warnings) {
      problems->AddSyntax({source, warning.line + 1}, ExplainUnknownField(warning.message));
    }
    NoteOrigins(*config, &tree, source, "", origins);
    return complete;
  }
}

}  // namespace filigree::config
