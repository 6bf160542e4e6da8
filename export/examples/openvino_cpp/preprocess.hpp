// preprocess.hpp - an image becomes the input of the network: size, resizing, padding.
// The pixels are those of the Python package bit by bit, which takes OpenCV's bilinear resize to
// enlarge and Pillow's antialiased one to shrink (that of Pillow 13: see `resize`).
#ifndef CONDINST_PREPROCESS_HPP
#define CONDINST_PREPROCESS_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <opencv2/imgproc.hpp>

#include "tail.hpp"

namespace condinst {

// The size an image is resized to, and the canvas it then lies on at the top left.
struct Placement {
    Size net, canvas;
};

// The placement of an image of a size, by the metadata of the file.
inline Placement place_image(Size image, const std::string &metadata) {
    const double short_side = json_number(metadata, "short_side");
    const double long_side = json_number(metadata, "long_side");
    const double shorter = std::min(image.height, image.width);
    const double longer = std::max(image.height, image.width);
    double height = image.height, width = image.width;
    if (json_text(metadata, "resize_rule") == "min_scale") {
        const double scale = std::min(long_side / longer, short_side / shorter);
        height *= scale, width *= scale;
    } else {  // two roundings, as detectron2 has them
        const double scale = short_side / shorter;
        height = image.height == shorter ? short_side : height * scale;
        width = image.width == shorter ? short_side : width * scale;
        if (std::max(height, width) > long_side) {
            const double again = long_side / std::max(height, width);
            height *= again, width *= again;
        }
    }
    const auto whole = [](double side) { return std::max(1, static_cast<int>(side + 0.5)); };
    const Size net = {whole(height), whole(width)};
    const std::vector<double> size = json_numbers(metadata, "size");
    if (size.empty()) {  // any canvas: the smallest one
        const int divisor = static_cast<int>(json_number(metadata, "size_divisor"));
        const auto up = [&](int side) { return (side + divisor - 1) / divisor * divisor; };
        return {net, {up(net.height), up(net.width)}};
    }
    // the one canvas of the file: what does not fit is scaled down once more, never cropped
    const Size canvas = {static_cast<int>(size[0]), static_cast<int>(size[1])};
    const double scale = std::min(
        {1.0, size[0] / static_cast<double>(net.height), size[1] / static_cast<double>(net.width)});
    return {{std::min(whole(net.height * scale), canvas.height),
             std::min(whole(net.width * scale), canvas.width)},
            canvas};
}

// One axis of Pillow's antialiased bilinear resize: each output is a sum of a few inputs.
struct Taps {
    int first = 0;
    std::vector<int> weights;  // in units of 2^-22
};

constexpr int kWeightBits = 22;  // Pillow: 32 - 8 bits of a pixel - 2 to spare

inline std::vector<Taps> pillow_taps(int inputs, int outputs) {
    std::vector<Taps> taps(outputs);
    const double scale = static_cast<double>(inputs) / outputs;
    const double support = std::max(scale, 1.0);  // half the width of the triangle
    for (int i = 0; i < outputs; ++i) {
        const double centre = (i + 0.5) * scale;
        const int first = std::max(static_cast<int>(centre - support + 0.5), 0);
        const int end = std::min(static_cast<int>(centre + support + 0.5), inputs);
        std::vector<double> weights;
        double sum = 0;
        for (int at = first; at < end; ++at) {
            const double distance = std::abs((at - centre + 0.5) * (1.0 / support));
            weights.push_back(distance < 1 ? 1 - distance : 0);
            sum += weights.back();
        }
        taps[i].first = first;
        for (double weight : weights)
            taps[i].weights.push_back(
                static_cast<int>(0.5 + (sum == 0 ? weight : weight / sum) * (1 << kWeightBits)));
    }
    return taps;
}

// `image`, 8 bit with 3 channels, resized along its rows and turned: [W, H] of [H, W'].
inline cv::Mat pillow_across(const cv::Mat &image, int width) {
    const std::vector<Taps> taps = pillow_taps(image.cols, width);
    cv::Mat turned(width, image.rows, CV_8UC3);
    for (int y = 0; y < image.rows; ++y) {
        const cv::Vec3b *row = image.ptr<cv::Vec3b>(y);
        for (int x = 0; x < width; ++x) {
            int sums[3] = {1 << (kWeightBits - 1), 1 << (kWeightBits - 1), 1 << (kWeightBits - 1)};
            for (std::size_t i = 0; i < taps[x].weights.size(); ++i)
                for (int c = 0; c < 3; ++c)
                    sums[c] += row[taps[x].first + static_cast<int>(i)][c] * taps[x].weights[i];
            for (int c = 0; c < 3; ++c)
                turned.at<cv::Vec3b>(x, y)[c] =
                    static_cast<std::uint8_t>(std::min(std::max(sums[c] >> kWeightBits, 0), 255));
        }
    }
    return turned;
}

// `image`, BGR with 8 bits, at a size. Only if neither side shrinks OpenCV does it.
inline cv::Mat resize(const cv::Mat &image, Size size) {
    const int fewer_rows = image.rows - size.height, fewer_columns = image.cols - size.width;
    cv::Mat resized;
    if (fewer_rows <= 0 && fewer_columns <= 0) {
        cv::resize(image, resized, {size.width, size.height}, 0, 0, cv::INTER_LINEAR);
    } else if (fewer_rows > 0 && fewer_rows > 2 * fewer_columns) {
        // down, then across, since Pillow 13; before it, never: a few pixels differ by one level
        cv::transpose(image, resized);
        resized = pillow_across(pillow_across(resized, size.height), size.width);
        cv::transpose(cv::Mat(resized), resized);
    } else {  // across, then down
        resized = pillow_across(pillow_across(image, size.width), size.height);
    }
    return resized;
}

}  // namespace condinst

#endif
