// tail.hpp - the tail of a CondInst model: outputs of a file's detector cut become instances.
// Header-only C++17, nothing but the standard library. The same as tail.py, which is shorter.
//
//     // text: metadata_props["condinst"] of the file
//     condinst::Config config = condinst::config_from_metadata(text);
//     condinst::Outputs outputs;  // pointers to what the network put out for one image
//     ...
//     for (const condinst::Instance &found : condinst::instances(outputs, config, net, image))
//         std::printf("%d %.3f\n", found.label, found.score);
//
// Functions throw std::runtime_error on metadata they can't use. All may be called from several
// threads at once. Compile with -ffp-contract=off for an arm64 CPU, or near ties may be decided
// otherwise than in numpy.
#ifndef CONDINST_TAIL_HPP
#define CONDINST_TAIL_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <locale>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace condinst {

struct Size {
    int height = 0, width = 0;
};

// What of the configuration the steps after the network need.
struct Config {
    float nms_iou = 0;
    int max_detections = 0;
    bool score_root = true;
    std::vector<int> head_levels, sizes_of_interest;
    int feature_stride = 0;  // network pixels per cell of mask_features
    int mask_stride = 0;     // network pixels per cell of the masks
    int depth = 0, width = 0;
    std::string coordinates;  // "relative", "absolute" or "none"
    bool use_features = true;
};

// Outputs for one image, float32 and int32, by their names in the file. In a batch: pointers to
// image i.
struct Outputs {
    const float *candidate_boxes = nullptr;                       // [M, 4]
    const float *candidate_scores = nullptr;                      // [M]
    const std::int32_t *candidate_labels = nullptr;               // [M]
    const std::int32_t *candidate_locations = nullptr;            // [M]
    const float *params_map = nullptr;                            // [P, A]
    const float *mask_features = nullptr;                         // [C, h, w]
    int candidates = 0, params = 0, locations = 0, channels = 0;  // M, P, A, C
    Size cells;                                                   // h, w
};

// A part of the image; everything outside is background.
struct Mask {
    int x = 0, y = 0;  // its top left pixel in the image
    Size size;
    std::vector<std::uint8_t> pixels;  // [height, width], 1 inside the object
};

struct Instance {
    int label = 0;
    float score = 0;
    float box[4] = {};  // x1 y1 x2 y2 in pixels of the image
    Mask mask;
};

// ---- metadata -----------------------------------------------------------------------------------

// The text from the value of a field on. Fields of the metadata have different names in all its
// sections, and within a JSON string a backslash stands before each quote: so the first place where
// the name stands with a colon is the field.
inline std::string json_value(const std::string &json, const std::string &name) {
    const std::string key = "\"" + name + "\":";
    const std::size_t at = json.find(key);
    if (at == std::string::npos) throw std::runtime_error("the metadata has no field " + name);
    return json.substr(json.find_first_not_of(" ", at + key.size()));
}

// The numbers of a field: one, or all of its list. None where it is null.
inline std::vector<double> json_numbers(const std::string &json, const std::string &name) {
    std::string text = json_value(json, name);
    const bool list = text[0] == '[';
    text = text.substr(list, text.find_first_of(list ? "]" : ",}") - list);
    std::replace(text.begin(), text.end(), ',', ' ');
    std::istringstream stream(text);
    stream.imbue(std::locale::classic());  // a point, whatever the user's language has
    std::vector<double> numbers;
    for (double number; stream >> number;) numbers.push_back(number);
    return numbers;
}

inline double json_number(const std::string &json, const std::string &name) {
    const std::vector<double> numbers = json_numbers(json, name);
    if (numbers.size() != 1) throw std::runtime_error(name + " in the metadata is not a number");
    return numbers[0];
}

inline bool json_true(const std::string &json, const std::string &name) {
    return json_value(json, name).compare(0, 4, "true") == 0;
}

// A text without escapes.
inline std::string json_text(const std::string &json, const std::string &name) {
    const std::string value = json_value(json, name);
    return value.substr(1, value.find('"', 1) - 1);
}

inline Config config_from_metadata(const std::string &json) {
    const bool older = json.find("\"nms\":") == std::string::npos;  // files from before mask NMS
    if (!older && json_text(json, "nms") != "box")
        throw std::runtime_error("tail.hpp finishes files with box NMS, not this one");
    const auto whole = [&](const char *name) {
        const std::vector<double> numbers = json_numbers(json, name);
        return std::vector<int>(numbers.begin(), numbers.end());
    };
    Config config;
    config.nms_iou = static_cast<float>(json_number(json, "nms_iou"));
    config.max_detections = static_cast<int>(json_number(json, "max_detections"));
    config.score_root = json_true(json, "score_root");
    config.head_levels = whole("head_levels");
    config.sizes_of_interest = whole("sizes_of_interest");
    config.feature_stride = 1 << whole("mask_levels").at(0);
    config.mask_stride = static_cast<int>(json_number(json, "mask_stride"));
    config.depth = static_cast<int>(json_number(json, "mask_head_depth"));
    config.width = static_cast<int>(json_number(json, "mask_head_width"));
    config.coordinates = json_text(json, "coordinates");
    config.use_features = json_true(json, "use_features");
    return config;
}

// ---- NMS ----------------------------------------------------------------------------------------

// Slots of the candidates that greedy NMS within each class keeps, best first.
inline std::vector<int> class_nms(const Outputs &outputs, const Config &config) {
    const float *scores = outputs.candidate_scores;
    std::vector<int> order, kept;
    for (int slot = 0; slot < outputs.candidates; ++slot)
        if (scores[slot] > 0) order.push_back(slot);  // -1 is an empty slot
    std::stable_sort(order.begin(), order.end(),      // ties go to the lower slot
                     [&](int a, int b) { return scores[a] > scores[b]; });
    const auto area = [](const float *box) { return (box[2] - box[0]) * (box[3] - box[1]); };
    const auto dropped_by = [&](int slot, int better) {
        if (outputs.candidate_labels[slot] != outputs.candidate_labels[better]) return false;
        const float *a = outputs.candidate_boxes + 4 * static_cast<std::size_t>(slot);
        const float *b = outputs.candidate_boxes + 4 * static_cast<std::size_t>(better);
        const float width = std::max(std::min(a[2], b[2]) - std::max(a[0], b[0]), 0.0f);
        const float height = std::max(std::min(a[3], b[3]) - std::max(a[1], b[1]), 0.0f);
        const float overlap = width * height;
        // two boxes without area: 0 / 0 is not above the threshold
        return overlap / (area(a) + area(b) - overlap) > config.nms_iou;
    };
    for (int slot : order) {
        if (static_cast<int>(kept.size()) == config.max_detections) break;
        if (std::none_of(kept.begin(), kept.end(), [&](int k) { return dropped_by(slot, k); }))
            kept.push_back(slot);
    }
    return kept;
}

// ---- mask heads ---------------------------------------------------------------------------------

// Where an instance was predicted: the centre of a location, and the object size of its level.
struct Place {
    float x = 0, y = 0, size = 0;
};

// All A locations: levels from fine to coarse, rows, columns (section 3.2 of arXiv:2003.05664).
inline std::vector<Place> places(Size cells, const Config &config) {
    std::vector<Place> all;
    for (std::size_t i = 0; i < config.head_levels.size(); ++i) {
        const int stride = 1 << config.head_levels[i];
        const int rows = (cells.height * config.feature_stride + stride - 1) / stride;
        const int columns = (cells.width * config.feature_stride + stride - 1) / stride;
        for (int row = 0; row < rows; ++row)
            for (int column = 0; column < columns; ++column)
                all.push_back({static_cast<float>(column * stride + stride / 2),
                               static_cast<float>(row * stride + stride / 2),
                               static_cast<float>(config.sizes_of_interest[i])});
    }
    return all;
}

// Logits [h, w] of one mask: 1x1 convolutions with ReLU between them (section 3.1). `params` [P]
// holds the weights [out, in] of all layers and after them all biases.
inline std::vector<float> mask_head(const Outputs &outputs, const std::vector<float> &params,
                                    const Place &place, const Config &config) {
    constexpr int kTile = 128;  // cells at once, so that the layers stay in the cache
    const int cells = outputs.cells.height * outputs.cells.width;
    const int coordinates = config.coordinates == "none" ? 0 : 2;
    const int first = coordinates + (config.use_features ? outputs.channels : 0);
    const auto inputs = [&](int layer) { return layer ? config.width : first; };
    const auto channels = [&](int layer) { return layer + 1 < config.depth ? config.width : 1; };
    std::size_t weights = 0, biases = 0;
    for (int layer = 0; layer < config.depth; ++layer) {
        weights += static_cast<std::size_t>(inputs(layer)) * channels(layer);
        biases += channels(layer);
    }
    if (weights + biases != params.size())
        throw std::runtime_error("params_map does not have the channels that the metadata says");
    std::vector<float> logits(cells), x(kTile * static_cast<std::size_t>(first)), y;
    for (int start = 0; start < cells; start += kTile) {
        const int count = std::min(kTile, cells - start);
        // inputs [in, kTile]: coordinates first, then the features
        x.resize(kTile * static_cast<std::size_t>(first));
        for (int i = 0; coordinates && i < count; ++i) {
            const int row = (start + i) / outputs.cells.width;
            const int column = (start + i) % outputs.cells.width, stride = config.feature_stride;
            const float px = static_cast<float>(column * stride + stride / 2);
            const float py = static_cast<float>(row * stride + stride / 2);
            const bool relative = config.coordinates == "relative";
            x[i] = relative ? (place.x - px) / place.size : px / 512;
            x[kTile + i] = relative ? (place.y - py) / place.size : py / 512;
        }
        for (int c = 0; c < first - coordinates; ++c)
            std::copy_n(outputs.mask_features + static_cast<std::size_t>(c) * cells + start, count,
                        x.begin() + static_cast<std::ptrdiff_t>(kTile) * (coordinates + c));
        // layers
        const float *weight = params.data(), *bias = weight + weights;
        for (int layer = 0; layer < config.depth; ++layer) {
            y.assign(kTile * static_cast<std::size_t>(channels(layer)), 0);
            for (int out = 0; out < channels(layer); ++out, ++bias) {
                float *sum = y.data() + static_cast<std::size_t>(kTile) * out;
                for (int in = 0; in < inputs(layer); ++in) {
                    const float *source = x.data() + static_cast<std::size_t>(kTile) * in;
                    const float factor = *weight++;
                    for (int i = 0; i < kTile; ++i) sum[i] += factor * source[i];
                }
                const float floor = layer + 1 < config.depth ? 0.0f : -INFINITY;  // ReLU or none
                const float shift = *bias;
                for (int i = 0; i < kTile; ++i) sum[i] = std::max(sum[i] + shift, floor);
            }
            std::swap(x, y);
        }
        std::copy_n(x.begin(), count, logits.begin() + start);
    }
    return logits;
}

// ---- upsampling and paste -----------------------------------------------------------------------

// Rows or columns from `first` to the one before `end`.
struct Range {
    int first = 0, end = 0;
};

// The rows and columns of the cells [h, w] above a limit, and one more on each side.
inline std::pair<Range, Range> window(const float *cells, Size size, float limit) {
    Range rows{size.height, 0}, columns{size.width, 0};
    for (int row = 0; row < size.height; ++row) {
        const float *line = cells + static_cast<std::size_t>(row) * size.width;
        const auto above = [&](float value) { return value > limit; };
        const int first = static_cast<int>(std::find_if(line, line + size.width, above) - line);
        if (first == size.width) continue;
        int end = size.width;
        while (line[end - 1] <= limit) --end;
        rows = {std::min(rows.first, row), row + 1};
        columns = {std::min(columns.first, first), std::max(columns.end, end)};
    }
    if (!rows.end) return {};
    return {{std::max(rows.first - 1, 0), std::min(rows.end + 1, size.height)},
            {std::max(columns.first - 1, 0), std::min(columns.end + 1, size.width)}};
}

// Linear interpolation along one axis: the neighbours of a place, and the weight of the second.
struct Sample {
    int low = 0, high = 0;
    float part = 0;
};

inline Sample sample(float place, int cells) {
    place = std::min(std::max(place, 0.0f), static_cast<float>(cells - 1));
    const int low = static_cast<int>(place);
    return {low, std::min(low + 1, cells - 1), place - static_cast<float>(low)};
}

inline float read(const float *cells, int width, const Sample &row, const Sample &column) {
    const auto across = [&](int at) {
        const float *line = cells + static_cast<std::size_t>(at) * width;
        return line[column.low] * (1 - column.part) + line[column.high] * column.part;
    };
    return across(row.low) * (1 - row.part) + across(row.high) * row.part;
}

// Probabilities [factor*h, factor*w] of logits [h, w]: cell i of any stride s lies on network pixel
// i * s + s / 2. Where none is near 0.5 they are left at 0, which `paste` makes nothing else of.
inline std::vector<float> probabilities(const std::vector<float> &logits, Size size, int factor) {
    const int width = factor * size.width;
    std::vector<float> result(logits.size() * factor * factor);
    const auto [rows, columns] = window(logits.data(), size, 0);
    const auto place = [&](int j) {
        return static_cast<float>(j - factor / 2) / static_cast<float>(factor);
    };
    for (int y = factor * rows.first; y < factor * rows.end; ++y) {
        const Sample row = sample(place(y), size.height);
        for (int x = factor * columns.first; x < factor * columns.end; ++x) {
            const float logit = read(logits.data(), size.width, row, sample(place(x), size.width));
            result[static_cast<std::size_t>(y) * width + x] = 1 / (1 + std::exp(-logit));
        }
    }
    return result;
}

// Where `pixels` of the image read `cells` of the mask, through `net` pixels of the network: for
// those that read cells of `range` alone, and the first of these pixels.
inline std::pair<std::vector<Sample>, int> samples(int pixels, int net, int cells, int stride,
                                                   Range range) {
    std::vector<Sample> found;
    int first = 0;
    const float scale = static_cast<float>(net) / static_cast<float>(pixels);
    for (int i = 0; i < pixels; ++i) {
        float place = (static_cast<float>(i) + 0.5f) * scale - 0.5f;  // half-pixel centres
        place = std::min(std::max(place, 0.0f), static_cast<float>(net - 1));
        // interpolating the small mask once equals enlarging it first
        const float cell = (place - static_cast<float>(stride / 2)) / static_cast<float>(stride);
        const Sample at = sample(cell, cells);
        if (at.low < range.first || at.high >= range.end) continue;
        if (found.empty()) first = i;
        found.push_back(at);
    }
    return {found, first};
}

// The mask at the size of the image, from probabilities [h, w] of the network's canvas at `stride`.
// `net` is the size of the resized image, without what pads it.
inline Mask paste(const float *cells, Size size, int stride, Size net, Size image) {
    const auto [row_range, column_range] = window(cells, size, 0.5f);
    const auto [rows, top] = samples(image.height, net.height, size.height, stride, row_range);
    const auto [columns, left] = samples(image.width, net.width, size.width, stride, column_range);
    Mask mask;
    if (rows.empty() || columns.empty()) return mask;
    mask.x = left, mask.y = top;
    mask.size = {static_cast<int>(rows.size()), static_cast<int>(columns.size())};
    mask.pixels.reserve(rows.size() * columns.size());
    for (const Sample &row : rows)
        for (const Sample &column : columns)
            mask.pixels.push_back(read(cells, size.width, row, column) > 0.5f);
    return mask;
}

// ---- all of it ----------------------------------------------------------------------------------

// `box` in pixels of the image; false where nothing of it is left.
inline bool to_image(const float *net_box, Size net, Size image, float (&box)[4]) {
    const float ratios[2] = {static_cast<float>(static_cast<double>(image.width) / net.width),
                             static_cast<float>(static_cast<double>(image.height) / net.height)};
    const int limits[2] = {image.width, image.height};
    for (int i = 0; i < 4; ++i)
        box[i] =
            std::min(std::max(net_box[i] * ratios[i % 2], 0.0f), static_cast<float>(limits[i % 2]));
    return box[2] > box[0] && box[3] > box[1];
}

// The instances of one image, best score first. `net` is the size the image was resized to (the
// input image_sizes), `image` the one before that.
inline std::vector<Instance> instances(const Outputs &outputs, const Config &config, Size net,
                                       Size image) {
    const std::vector<Place> all = places(outputs.cells, config);
    if (static_cast<int>(all.size()) != outputs.locations)
        throw std::runtime_error("params_map does not have the locations that the metadata says");
    const int factor = config.feature_stride / config.mask_stride;
    const Size size = {factor * outputs.cells.height, factor * outputs.cells.width};
    std::vector<Instance> found;
    std::vector<float> params(outputs.params);
    for (int slot : class_nms(outputs, config)) {
        Instance one;
        const float *net_box = outputs.candidate_boxes + 4 * static_cast<std::size_t>(slot);
        if (!to_image(net_box, net, image, one.box)) continue;
        one.label = outputs.candidate_labels[slot];
        const float score = outputs.candidate_scores[slot];
        one.score = config.score_root ? std::sqrt(score) : score;
        const int location = outputs.candidate_locations[slot];
        for (int p = 0; p < outputs.params; ++p)
            params[p] =
                outputs.params_map[static_cast<std::size_t>(p) * outputs.locations + location];
        const auto logits = mask_head(outputs, params, all.at(location), config);
        one.mask = paste(probabilities(logits, outputs.cells, factor).data(), size,
                         config.mask_stride, net, image);
        found.push_back(std::move(one));
    }
    return found;
}

// COCO run lengths of a mask in its image, not compressed: down the columns, zeros first.
inline std::vector<std::int64_t> runs(const Mask &mask, Size image) {
    std::vector<std::int64_t> counts;
    std::int64_t start = 0;  // of the run that goes on
    bool inside = false;
    const auto change = [&](std::int64_t position) {
        counts.push_back(position - start);
        start = position;
        inside = !inside;
    };
    // the column behind the mask too, where a run of full height ends
    for (int column = 0; column <= mask.size.width; ++column) {
        const std::int64_t top = static_cast<std::int64_t>(mask.x + column) * image.height + mask.y;
        for (int row = 0; row < mask.size.height; ++row) {
            const std::size_t at = static_cast<std::size_t>(row) * mask.size.width + column;
            const bool set = column < mask.size.width && mask.pixels[at];
            if (set != inside) change(top + row);
        }
        // a column of full height goes on at the top of the next
        if (inside && mask.size.height < image.height) change(top + mask.size.height);
    }
    const std::int64_t pixels = static_cast<std::int64_t>(image.height) * image.width;
    if (start < pixels) counts.push_back(pixels - start);
    return counts;
}

// The instances as JSON, a list of what tail.py writes too.
inline std::string json_from_instances(const std::vector<Instance> &found, Size image) {
    std::ostringstream text;
    text.imbue(std::locale::classic());
    text.precision(9);  // enough to give the same float32 again
    const char *before = "[";
    for (const Instance &one : found) {
        text << before << "{\"label\": " << one.label << ", \"score\": " << one.score
             << ", \"box\": [" << one.box[0] << ", " << one.box[1] << ", " << one.box[2] << ", "
             << one.box[3] << "], \"segmentation\": {\"size\": [" << image.height << ", "
             << image.width << "], \"counts\": ";
        before = "[";
        for (std::int64_t count : runs(one.mask, image)) {
            text << before << count;
            before = ", ";
        }
        text << "]}}";
        before = ",\n ";
    }
    text << (found.empty() ? "[]\n" : "]\n");
    return text.str();
}

}  // namespace condinst

#endif
