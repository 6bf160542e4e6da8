/* overlay.c - finds the instances in an image file and paints them, each in a colour of its own.

   cc -std=c99 overlay.c $(condinst capi --include --libs) -o overlay
   ./overlay model.onnx street.jpg overlay.png */

#include <condinst.h>
#include <stdlib.h>

#include "png.h"

static const uint8_t colours[6][3] = {{230, 25, 75}, {60, 180, 75},  {255, 225, 25},
                                      {0, 130, 200}, {245, 130, 48}, {145, 30, 180}};

/* The image as RGB with the instances on it, or NULL. */
static uint8_t *painted(const condinst_image *image, const condinst_result *found) {
    const size_t pixels = (size_t)image->width * (size_t)image->height;
    uint8_t *rgb = malloc(pixels * 3), *owner = calloc(pixels, 1);
    if (rgb == NULL || owner == NULL) {
        free(rgb);
        free(owner);
        return NULL;
    }
    for (size_t i = found->count; i-- > 0;) /* the best one last, on top */
        condinst_mask_paint(found, i, (uint8_t)(1 + i % 6), owner, image->width);
    for (size_t p = 0; p < pixels; p++)
        for (size_t c = 0; c < 3; c++) {
            const uint8_t value = image->data[p * 3 + 2 - c];
            rgb[p * 3 + c] = owner[p] ? (uint8_t)((value + colours[owner[p] - 1][c]) / 2) : value;
        }
    free(owner);
    return rgb;
}

static int failed(const char *what) {
    fprintf(stderr, "%s: %s\n", what, condinst_last_error());
    return 1;
}

int main(int argc, char **argv) {
    condinst_model *model;
    condinst_image image;
    condinst_result *found;
    if (argc != 4) return fprintf(stderr, "usage: %s MODEL IMAGE OVERLAY.png\n", argv[0]), 2;
    if (condinst_open(argv[1], NULL, &model)) return failed(argv[1]);
    if (condinst_read_image(model, argv[2], &image)) return failed(argv[2]);
    if (condinst_find(model, &image, 1, CONDINST_BITS, &found)) return failed("find");
    for (size_t i = 0; i < found->count; i++)
        printf("%s %.9g at %.9g %.9g %.9g %.9g\n", found->names[i], found->scores[i],
               found->boxes[i][0], found->boxes[i][1], found->boxes[i][2], found->boxes[i][3]);
    uint8_t *rgb = painted(&image, found);
    int written = rgb && write_png(argv[3], rgb, (uint32_t)image.width, (uint32_t)image.height);
    if (!written) fprintf(stderr, "%s can't be written\n", argv[3]);
    free(rgb);
    condinst_result_free(found);
    condinst_image_free(&image);
    condinst_close(model);
    return !written;
}
