/* condinst.h - instance masks from C: the Python package condinst_infer behind a C ABI.

   #include <condinst.h>
   #include <stdio.h>

   int main(void) {
       condinst_model *model;
       if (condinst_open("model.onnx", NULL, &model)) return puts(condinst_last_error());
       condinst_image image = {frame, 640, 480, 640 * 3, CONDINST_BGR};
       condinst_result *found;
       if (condinst_find(model, &image, 1, CONDINST_BITS, &found)) return puts(condinst_last_error());
       for (size_t i = 0; i < found->count; i++)
           printf("%s %.2f at %.0f %.0f\n", found->names[i], found->scores[i],
                  found->boxes[i][0], found->boxes[i][1]);
       condinst_result_free(found);
       condinst_close(model);
   }

   cc main.c $(condinst capi --include --libs)         after: condinst capi build

   The library runs Python inside the process. Where the process already runs Python, that one is
   used; else the first condinst_open starts one, which stays until the process ends. It changes
   neither the locale nor a signal handler, and does not need the caller to know of the GIL.

   Threads: every function may be called from any thread at any time, also several at once with
   the same model; only condinst_close must be the last call with its model, and
   condinst_result_free and condinst_image_free the last with theirs. Inference runs in parallel.
   A model that is closed already is refused, unless its memory is another model's by then.

   Fork: a child may free results, close models and call condinst_mask_paint. Models that were
   opened before the fork, and condinst_open where the library had started Python by then, give
   CONDINST_PYTHON. A process that forks first and opens in its children has no such limits.

   Ownership: the library keeps nothing of what it is given after a call returns, neither pixels
   nor texts. What it gives is the caller's, to be freed with the function named beside it; a
   result outlives its model.

   Failure: functions that return a condinst_status give CONDINST_OK (0) or what went wrong; then
   condinst_last_error() says it in a sentence, and outputs are NULL or zero. No C++ exception
   and no exit leaves the library. */

#ifndef CONDINST_H
#define CONDINST_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CONDINST_ABI 1 /* changes when a program has to be compiled again; also in the file name */

typedef enum condinst_status {
    CONDINST_OK = 0,
    CONDINST_BAD_ARGUMENT = 1,    /* NULL, a size, stride or option out of range */
    CONDINST_BAD_MODEL = 2,       /* the file is missing, can't be read, not ours or damaged */
    CONDINST_BAD_INPUT = 3,       /* an image that can't be read, or is too large */
    CONDINST_SESSION = 4,         /* the runtime refused the file or the device */
    CONDINST_MISSING_PACKAGE = 5, /* condinst_infer or a runtime is not installed in this Python */
    CONDINST_OUT_OF_MEMORY = 6,
    CONDINST_PYTHON = 7,  /* Python can't be started, is another one, or is gone: after fork */
    CONDINST_INTERNAL = 8 /* what should not happen; the text is Python's */
} condinst_status;

/* Order of the bytes of a pixel. */
typedef enum condinst_channels {
    CONDINST_BGR = 0,
    CONDINST_RGB = 1,
    CONDINST_BGRA = 2, /* alpha is ignored */
    CONDINST_RGBA = 3,
    CONDINST_GRAY = 4
} condinst_channels;

typedef enum condinst_mask_format {
    CONDINST_BITS = 0,  /* rows of bits, the leftmost pixel in the lowest bit of the first byte */
    CONDINST_BYTES = 1, /* rows of bytes, 0 or 1 */
    CONDINST_RLE = 2    /* COCO's compressed text, of the whole image */
} condinst_mask_format;

typedef struct condinst_model condinst_model;

/* Zero in a field is its default, so {0} are the defaults too. */
typedef struct condinst_options {
    const char *device;     /* "cpu" or "cuda"; NULL: cpu, and cuda for an .engine */
    const char *runtime;    /* of an .onnx on the CPU: "onnxruntime" (NULL) or "openvino" */
    const char *precision;  /* in OpenVINO: "fp32", "bf16" or "int8"; NULL: the file's own */
    int32_t threads;        /* CPU threads of one call; 0: all cores, shared between `workers` */
    int32_t workers;        /* calls that will run at the same time; 0 is 1; more than these work.
                               Each at most 1024, and threads * workers at most 4096. */
    int32_t max_detections; /* most instances of an image; 0: all the model reports */
    float score_threshold;  /* lowest score, to 1; 0: all the model reports */
    const char *python;     /* the Python to start: bin/python of a virtual environment that has
                              condinst_infer. NULL: the one the library was built with. Not used
                              where the process runs Python before the library does. */
} condinst_options;

typedef struct condinst_image {
    const uint8_t *data; /* the first row */
    int32_t width, height;
    ptrdiff_t stride; /* bytes from a row to the next, at least width * channels */
    int32_t channels; /* a condinst_channels */
} condinst_image;

/* One mask. Bits and bytes are of the part of the image that holds the foreground; outside is
   background. An empty mask has width and height 0. With CONDINST_RLE all but `rle` is zero. */
typedef struct condinst_mask {
    int32_t x, y, width, height; /* pixels of the image */
    size_t stride;               /* bytes from a row to the next */
    const uint8_t *rows;
    const char *rle; /* "counts" of COCO; its "size" is [height, width] of the image */
} condinst_mask;

typedef struct condinst_segment { /* of a panoptic result: an object, or all of one kind of stuff */
    int32_t id;                   /* in `ids` */
    int32_t is_thing;
    int32_t instance; /* its place among the instances; -1 for stuff */
    int32_t box[4];   /* x1 y1 x2 y2 of its pixels; the ends are outside */
    float score;      /* 0 for stuff */
    int64_t category_id, area;
    const char *name;
} condinst_segment;

/* What is in one image, best score first; arrays have `count` entries, which may be 0. The
   library makes these, so later versions may have more fields at the end. */
typedef struct condinst_result {
    int32_t width, height; /* of the image */
    int32_t mask_format;   /* a condinst_mask_format */
    size_t count;
    const float (*boxes)[4]; /* x1 y1 x2 y2 in pixels of the image */
    const float *scores;
    const int32_t *labels;    /* index of the class, from 0 */
    const char *const *names; /* of the class, UTF-8 */
    const condinst_mask *masks;
    const int32_t *ids; /* of condinst_panoptic: [height * width], 0 where void; else NULL */
    size_t segment_count;
    const condinst_segment *segments; /* things, best first, then stuff */
} condinst_result;

/* CONDINST_ABI of the library that is loaded; programs compare it with their own. Can't fail. */
int32_t condinst_abi(void);

/* Version of the library, such as "0.1.0"; static. Can't fail. */
const char *condinst_version(void);

/* What the last failed call of this thread had to say: a line of UTF-8, also where a name in it is
   not (\xe9 stands for such a byte), at most 1023 bytes; "" before the first one. Valid until this
   thread's next failed call. */
const char *condinst_last_error(void);

/* The name of a status, such as "CONDINST_OK"; static, "?" if there is none. */
const char *condinst_status_name(condinst_status status);

/* All options at their defaults. Can't fail. */
condinst_options condinst_default_options(void);

/* Loads a model file: .onnx, .engine or .safetensors. The first call starts Python if need be.
   path: bytes as the file system has them, UTF-8 or not, whatever the locale. What is not a
         regular file that can be read gives CONDINST_BAD_MODEL, at once.
   options: NULL are the defaults.
   model: set to the new model, or to NULL on failure; free it with condinst_close. */
condinst_status condinst_open(const char *path, const condinst_options *options,
                              condinst_model **model);

/* Frees a model; NULL is allowed. Results stay valid. */
void condinst_close(condinst_model *model);

/* Finds the instances of n images, n >= 1; a batch where the model allows one. Contiguous BGR is
   read where it is; other orders and padded rows are converted on the way into the model.
   results: room for n pointers; each is set to a result, to be freed with condinst_result_free,
            or all to NULL on failure. */
condinst_status condinst_find(condinst_model *model, const condinst_image *images, size_t n,
                              condinst_mask_format format, condinst_result **results);

/* The same with `ids` and `segments`: what every pixel shows. For models with a semantic branch;
   CONDINST_BAD_ARGUMENT for others. The options score_threshold and max_detections don't apply. */
condinst_status condinst_panoptic(condinst_model *model, const condinst_image *images, size_t n,
                                  condinst_mask_format format, condinst_result **results);

/* Frees a result and all it points to; NULL is allowed. */
void condinst_result_free(condinst_result *result);

/* Writes `value` where mask number `index` is, into a byte map of the size of the image, and leaves
   the rest. stride: bytes from a row of the map to the next, at least the width of the image.
   Calls no Python. */
condinst_status condinst_mask_paint(const condinst_result *result, size_t index, uint8_t value,
                                    uint8_t *map, ptrdiff_t stride);

/* Reads an image file as Python does: JPEG, PNG, WebP, ..., upright, as contiguous BGR.
   path: as of condinst_open; here it is CONDINST_BAD_INPUT.
   image: set to the pixels, to be freed with condinst_image_free, or zeroed on failure. */
condinst_status condinst_read_image(condinst_model *model, const char *path, condinst_image *image);

/* Frees the pixels of condinst_read_image, never the caller's own, and zeroes `image`; NULL is
   allowed. */
void condinst_image_free(condinst_image *image);

#ifdef __cplusplus
}
#endif

#endif
