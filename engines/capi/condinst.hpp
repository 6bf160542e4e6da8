// condinst.hpp - instance masks from C++17: condinst.h with owners, exceptions and spans.
//
//   condinst::Model model("model.onnx");
//   condinst::Result found = model.find({frame.data, 640, 480, 640 * 3, CONDINST_BGR});
//   for (std::size_t i = 0; i < found.size(); i++)
//       std::cout << found.names()[i] << " " << found.scores()[i] << "\n";
//
// Header only; link libcondinst. What condinst.h says of threads and ownership holds here. Objects
// can be moved, not copied; what a result gives is valid as long as the result. Every failure is
// thrown as condinst::Error.

#ifndef CONDINST_HPP
#define CONDINST_HPP

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__has_include) && __cplusplus >= 202002L
#if __has_include(<span>)
#include <span>
#define CONDINST_STD_SPAN 1
#endif
#endif

#include "condinst.h"

namespace condinst {

#ifdef CONDINST_STD_SPAN
template <typename T>
using Span = std::span<T>;
#else
// As much of std::span as is needed here.
template <typename T>
class Span {
  public:
    Span() = default;
    Span(T *data, std::size_t size) : data_(data), size_(size) {}
    T *data() const { return data_; }
    std::size_t size() const { return size_; }
    bool empty() const { return size_ == 0; }
    T &operator[](std::size_t i) const { return data_[i]; }
    T *begin() const { return data_; }
    T *end() const { return data_ + size_; }

  private:
    T *data_ = nullptr;
    std::size_t size_ = 0;
};
#endif

using Image = condinst_image;
using Mask = condinst_mask;
using Segment = condinst_segment;

class Error : public std::runtime_error {
  public:
    Error(condinst_status status, const std::string &text)
        : std::runtime_error(text), status_(status) {}
    condinst_status status() const noexcept { return status_; }

  private:
    condinst_status status_;
};

inline void check(condinst_status status) {
    if (status != CONDINST_OK) throw Error(status, condinst_last_error());
}

// `given` for C, where a text ends at a zero byte.
inline const char *c_text(const std::string &given, condinst_status status) {
    if (given.find('\0') != std::string::npos)
        throw Error(status, "a name has a zero byte after " + std::string(given.c_str()) + ".");
    return given.c_str();
}

// condinst_options with texts of its own; empty and 0 are the defaults.
struct Options {
    std::string device, runtime, precision, python;
    std::int32_t threads = 0, workers = 0, max_detections = 0;
    float score_threshold = 0;
};

// What is in one image, best score first.
class Result {
  public:
    explicit Result(condinst_result *owned) : result_(owned) {}

    std::size_t size() const { return result_->count; }
    bool empty() const { return size() == 0; }
    std::int32_t width() const { return result_->width; }
    std::int32_t height() const { return result_->height; }

    Span<const float[4]> boxes() const { return {result_->boxes, size()}; }
    Span<const float> scores() const { return {result_->scores, size()}; }
    Span<const std::int32_t> labels() const { return {result_->labels, size()}; }
    Span<const char *const> names() const { return {result_->names, size()}; }
    Span<const Mask> masks() const { return {result_->masks, size()}; }

    // Of Model::panoptic, else empty: ids by pixel, and what they are.
    Span<const std::int32_t> ids() const {
        const std::size_t pixels = std::size_t(width()) * std::size_t(height());
        return {result_->ids, result_->ids == nullptr ? 0 : pixels};
    }
    Span<const Segment> segments() const { return {result_->segments, result_->segment_count}; }

    // Writes `value` where mask number `index` is, into a byte map of the size of the image.
    void paint(std::size_t index, std::uint8_t value, std::uint8_t *map,
               std::ptrdiff_t stride) const {
        check(condinst_mask_paint(get(), index, value, map, stride));
    }

    const condinst_result *get() const { return result_.get(); }

  private:
    struct Free {
        void operator()(condinst_result *result) const { condinst_result_free(result); }
    };
    std::unique_ptr<condinst_result, Free> result_;
};

// An image that was read from a file: contiguous BGR.
class Picture {
  public:
    explicit Picture(Image owned) : image_(owned) {}
    Picture(Picture &&other) noexcept : image_(std::exchange(other.image_, Image{})) {}
    Picture &operator=(Picture &&other) noexcept {
        std::swap(image_, other.image_);
        return *this;
    }
    ~Picture() { condinst_image_free(&image_); }

    const Image &image() const { return image_; }

  private:
    Image image_;
};

// A loaded model.
class Model {
  public:
    explicit Model(const std::string &path, const Options &options = {}) {
        const auto text = [](const std::string &s) {
            return s.empty() ? nullptr : c_text(s, CONDINST_BAD_ARGUMENT);
        };
        condinst_options given = condinst_default_options();
        given.device = text(options.device);
        given.runtime = text(options.runtime);
        given.precision = text(options.precision);
        given.python = text(options.python);
        given.threads = options.threads;
        given.workers = options.workers;
        given.max_detections = options.max_detections;
        given.score_threshold = options.score_threshold;
        condinst_model *model = nullptr;
        check(condinst_open(c_text(path, CONDINST_BAD_MODEL), &given, &model));
        model_.reset(model);
    }

    Result find(const Image &image, condinst_mask_format format = CONDINST_BITS) const {
        return std::move(run(condinst_find, {&image, 1}, format).front());
    }
    std::vector<Result> find(Span<const Image> images,
                             condinst_mask_format format = CONDINST_BITS) const {
        return run(condinst_find, images, format);
    }
    Result panoptic(const Image &image, condinst_mask_format format = CONDINST_BITS) const {
        return std::move(run(condinst_panoptic, {&image, 1}, format).front());
    }
    std::vector<Result> panoptic(Span<const Image> images,
                                 condinst_mask_format format = CONDINST_BITS) const {
        return run(condinst_panoptic, images, format);
    }

    Picture read(const std::string &path) const {
        Image image{};
        check(condinst_read_image(get(), c_text(path, CONDINST_BAD_INPUT), &image));
        return Picture(image);
    }

    condinst_model *get() const { return model_.get(); }

  private:
    std::vector<Result> run(decltype(&condinst_find) function, Span<const Image> images,
                            condinst_mask_format format) const {
        std::vector<condinst_result *> found(images.size());
        std::vector<Result> results;
        results.reserve(images.size());
        check(function(get(), images.data(), images.size(), format, found.data()));
        for (condinst_result *result : found) results.emplace_back(result);
        return results;
    }

    struct Close {
        void operator()(condinst_model *model) const { condinst_close(model); }
    };
    std::unique_ptr<condinst_model, Close> model_;
};

}  // namespace condinst

#endif
