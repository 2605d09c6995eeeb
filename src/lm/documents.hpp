// Documents from text and token files, in fragments, so that memory is bounded by neither the file
// nor the document (only by the longest line of a .jsonl).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "clt/lm/config.hpp"

namespace clt {

/// A part of a document, text or ids. Text is cut only before white space that follows something
/// else, where a byte-level tokenizer cuts too, so its parts have the whole's ids.
struct Fragment {
    bool starts_document = true;
    std::string text;
    std::vector<std::int32_t> ids;
};

class DocumentSource {
  public:
    virtual ~DocumentSource() = default;
    /// The next fragment, nothing at the end. Throws UserError naming file and line or position.
    virtual std::optional<Fragment> next() = 0;
};

enum class TextFormat { text, json_lines, numpy, binary };
/// By the name's end. Throws UserError that lists what is read.
TextFormat text_format(const std::string& path);

/// vocabulary: token files may hold smaller ids only.
std::unique_ptr<DocumentSource> open_documents(const std::string& path, const TextConfig& config,
                                               Index vocabulary);

}  // namespace clt
