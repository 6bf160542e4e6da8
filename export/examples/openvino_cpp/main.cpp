// main.cpp - an image becomes masks in C++, with OpenVINO and OpenCV. CMakeLists.txt says how to
// build it; no Python is needed to run it.
//
//     condinst_openvino MODEL.onnx IMAGE.png [-o instances.json] [--overlay overlay.png]
//         [--repeat N]
//
// MODEL.onnx is one of two forms of the same network:
//     condinst export MODEL -o standard.onnx --standard-ops
//         OpenVINO computes all up to the masks of the network's size
//     condinst export CHECKPOINT -o detector.onnx --graph detector
//         OpenVINO ends before NMS, tail.hpp does the rest
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstdint>
#include <exception>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>
#include <openvino/openvino.hpp>

#include "preprocess.hpp"
#include "tail.hpp"

using condinst::Instance;
using condinst::Size;

struct Options {
    std::string model, image, json, overlay;
    int repeat = 1;
};

static Options options_from(int argc, char **argv) {
    Options options;
    std::vector<std::string> files;
    for (int i = 1; i < argc; ++i) {
        const std::string word = argv[i];
        const bool has_value = i + 1 < argc;
        if (word == "-o" && has_value)
            options.json = argv[++i];
        else if (word == "--overlay" && has_value)
            options.overlay = argv[++i];
        else if (word == "--repeat" && has_value)
            options.repeat = std::atoi(argv[++i]);
        else
            files.push_back(word);
    }
    if (files.size() != 2 || options.repeat < 1)
        throw std::runtime_error(
            "usage: condinst_openvino MODEL.onnx IMAGE.png [-o instances.json] "
            "[--overlay overlay.png] [--repeat N]");
    options.model = files[0], options.image = files[1];
    return options;
}

// A model file, ready to run, and what its metadata says.
class Network {
  public:
    explicit Network(const std::string &path) {
        ov::Core core;
        std::shared_ptr<ov::Model> model = core.read_model(path);
        if (!model->has_rt_info("framework", "condinst"))  // metadata_props of the .onnx file
            throw std::runtime_error(path + " has no metadata of condinst export");
        metadata = model->get_rt_info<std::string>("framework", "condinst");
        config = condinst::config_from_metadata(metadata);
        is_full = condinst::json_text(metadata, "graph") == "full";
        for (double batch : condinst::json_numbers(metadata, "batch"))  // none: any
            if (batch != 1) throw std::runtime_error(path + " takes no single image");
        // files of --precision fp16 put out float16
        ov::preprocess::PrePostProcessor after(model);
        for (std::size_t i = 0; i < model->outputs().size(); ++i)
            if (model->output(i).get_element_type() == ov::element::f16)
                after.output(i).tensor().set_element_type(ov::element::f32);
        model = after.build();
        // the default is bf16 where the CPU has it: masks then differ by up to 0.4
        request = core.compile_model(model, "CPU", ov::hint::inference_precision(ov::element::f32))
                      .create_infer_request();
    }

    // The instances of a BGR image with 8 bits, best score first.
    std::vector<Instance> instances(const cv::Mat &bgr) {
        const Size image = {bgr.rows, bgr.cols};
        const auto [net, canvas] = condinst::place_image(image, metadata);
        cv::Mat padded(canvas.height, canvas.width, CV_8UC3, cv::Scalar::all(0));
        condinst::resize(bgr, net).copyTo(padded(cv::Rect(0, 0, net.width, net.height)));
        std::int32_t sizes[2] = {net.height, net.width};
        const ov::Shape shape = {1, static_cast<std::size_t>(canvas.height),
                                 static_cast<std::size_t>(canvas.width), 3};
        request.set_tensor("images", ov::Tensor(ov::element::u8, shape, padded.data));
        request.set_tensor("image_sizes", ov::Tensor(ov::element::i32, {1, 2}, sizes));
        request.infer();
        return is_full ? from_full(net, image) : from_detector(net, image);
    }

  private:
    // Outputs of a full graph: what is left is boxes and masks at the size of the image.
    std::vector<Instance> from_full(Size net, Size image) {
        const int count = request.get_tensor("num_detections").data<std::int32_t>()[0];
        const float *boxes = request.get_tensor("boxes").data<float>();    // [1, K, 4]
        const float *scores = request.get_tensor("scores").data<float>();  // [1, K]
        const std::int32_t *labels = request.get_tensor("labels").data<std::int32_t>();
        const ov::Tensor masks = request.get_tensor("masks");  // [1, K, h, w]
        const Size cells = {static_cast<int>(masks.get_shape()[2]),
                            static_cast<int>(masks.get_shape()[3])};
        std::vector<Instance> found;
        for (int k = 0; k < count; ++k) {
            Instance one;
            if (!condinst::to_image(boxes + 4 * k, net, image, one.box)) continue;
            one.label = labels[k];
            one.score = scores[k];
            const std::size_t start = static_cast<std::size_t>(k) * cells.height * cells.width;
            one.mask =
                condinst::paste(masks.data<float>() + start, cells, config.mask_stride, net, image);
            found.push_back(std::move(one));
        }
        return found;
    }

    // Outputs of a detector cut: NMS and mask heads are left too.
    std::vector<Instance> from_detector(Size net, Size image) {
        condinst::Outputs outputs;
        outputs.candidate_boxes = request.get_tensor("candidate_boxes").data<float>();
        outputs.candidate_scores = request.get_tensor("candidate_scores").data<float>();
        outputs.candidate_labels = request.get_tensor("candidate_labels").data<std::int32_t>();
        outputs.candidate_locations =
            request.get_tensor("candidate_locations").data<std::int32_t>();
        outputs.params_map = request.get_tensor("params_map").data<float>();
        outputs.mask_features = request.get_tensor("mask_features").data<float>();
        const auto side = [&](const char *name, int axis) {
            return static_cast<int>(request.get_tensor(name).get_shape()[axis]);
        };
        outputs.candidates = side("candidate_scores", 1);
        outputs.params = side("params_map", 1);
        outputs.locations = side("params_map", 2);
        outputs.channels = side("mask_features", 1);
        outputs.cells = {side("mask_features", 2), side("mask_features", 3)};
        return condinst::instances(outputs, config, net, image);
    }

    std::string metadata;
    condinst::Config config;
    bool is_full = true;
    ov::InferRequest request;
};

static void write_overlay(const std::string &path, const std::vector<Instance> &found,
                          cv::Mat image) {
    for (std::size_t k = 0; k < found.size(); ++k) {
        const Instance &one = found[k];
        const cv::Vec3b colour(static_cast<std::uint8_t>(37 * k), 200,
                               static_cast<std::uint8_t>(91 * k));
        for (int y = 0; y < one.mask.size.height; ++y)
            for (int x = 0; x < one.mask.size.width; ++x)
                if (one.mask.pixels[static_cast<std::size_t>(y) * one.mask.size.width + x]) {
                    cv::Vec3b &pixel = image.at<cv::Vec3b>(one.mask.y + y, one.mask.x + x);
                    pixel = pixel / 2 + colour / 2;
                }
        cv::rectangle(image, cv::Point(cvRound(one.box[0]), cvRound(one.box[1])),
                      cv::Point(cvRound(one.box[2]), cvRound(one.box[3])),
                      cv::Scalar(colour[0], colour[1], colour[2]));
    }
    if (!cv::imwrite(path, image)) throw std::runtime_error(path + " can't be written");
}

static int run(const Options &options) {
    const cv::Mat image = cv::imread(options.image, cv::IMREAD_COLOR);  // BGR, 8 bits, no alpha
    if (image.empty()) throw std::runtime_error(options.image + " can't be read");
    Network network(options.model);
    std::vector<Instance> found;
    for (int i = 0; i < options.repeat; ++i) {
        const auto start = std::chrono::steady_clock::now();
        found = network.instances(image);
        const std::chrono::duration<double, std::milli> time =
            std::chrono::steady_clock::now() - start;
        std::fprintf(stderr, "%.1f ms from pixels to masks\n", time.count());
    }
    for (const Instance &one : found)
        std::printf("label %d, score %.3f, box %.1f %.1f %.1f %.1f\n", one.label, one.score,
                    one.box[0], one.box[1], one.box[2], one.box[3]);
    std::printf("%zu instances\n", found.size());
    if (!options.json.empty()) {
        std::ofstream file(options.json);
        file << condinst::json_from_instances(found, {image.rows, image.cols});
        if (!file.flush()) throw std::runtime_error(options.json + " can't be written");
    }
    if (!options.overlay.empty()) write_overlay(options.overlay, found, image.clone());
    return EXIT_SUCCESS;
}

int main(int argc, char **argv) {
    try {
        return run(options_from(argc, argv));
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return EXIT_FAILURE;
    }
}
