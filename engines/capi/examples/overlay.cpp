// overlay.cpp - finds the instances in an image file and paints them, each in a colour of its own.
//
//   c++ -std=c++17 overlay.cpp $(condinst capi --include --libs) -o overlay
//   ./overlay model.onnx street.jpg overlay.png

#include <condinst.hpp>
#include <iomanip>
#include <iostream>

#include "png.h"

constexpr std::uint8_t colours[6][3] = {{230, 25, 75}, {60, 180, 75},  {255, 225, 25},
                                        {0, 130, 200}, {245, 130, 48}, {145, 30, 180}};

// The image as RGB with the instances on it.
static std::vector<std::uint8_t> painted(const condinst::Image &image,
                                         const condinst::Result &found) {
    const std::size_t pixels = std::size_t(image.width) * std::size_t(image.height);
    std::vector<std::uint8_t> rgb(pixels * 3), owner(pixels);
    for (std::size_t i = found.size(); i-- > 0;)  // the best one last, on top
        found.paint(i, std::uint8_t(1 + i % 6), owner.data(), image.width);
    for (std::size_t p = 0; p < pixels; p++)
        for (std::size_t c = 0; c < 3; c++) {
            const std::uint8_t value = image.data[p * 3 + 2 - c];
            rgb[p * 3 + c] =
                owner[p] ? std::uint8_t((value + colours[owner[p] - 1][c]) / 2) : value;
        }
    return rgb;
}

int main(int argc, char **argv) try {
    if (argc != 4) return std::cerr << "usage: " << argv[0] << " MODEL IMAGE OVERLAY.png\n", 2;
    const condinst::Model model(argv[1]);
    const condinst::Picture picture = model.read(argv[2]);
    const condinst::Image &image = picture.image();
    const condinst::Result found = model.find(image);
    std::cout << std::setprecision(9);
    for (std::size_t i = 0; i < found.size(); i++) {
        std::cout << found.names()[i] << " " << found.scores()[i] << " at";
        for (float side : found.boxes()[i]) std::cout << " " << side;
        std::cout << "\n";
    }
    const auto rgb = painted(image, found);
    if (!write_png(argv[3], rgb.data(), std::uint32_t(image.width), std::uint32_t(image.height)))
        throw std::runtime_error(std::string(argv[3]) + " can't be written");
} catch (const std::exception &error) {
    std::cerr << error.what() << "\n";
    return 1;
}
