/* png.h - writes RGB pixels as a PNG file, uncompressed; needs no library. */

#ifndef PNG_H
#define PNG_H

#include <stdint.h>
#include <stdio.h>

static uint32_t png_crc; /* of the chunk that is being written */

static void png_bytes(FILE *file, const uint8_t *bytes, size_t n) {
    for (size_t i = 0; i < n; i++) {
        png_crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++)
            png_crc = png_crc & 1 ? png_crc >> 1 ^ 0xEDB88320u : png_crc >> 1;
    }
    fwrite(bytes, 1, n, file);
}

static void png_number(FILE *file, uint32_t value) {
    const uint8_t bytes[4] = {(uint8_t)(value >> 24), (uint8_t)(value >> 16), (uint8_t)(value >> 8),
                              (uint8_t)value};
    png_bytes(file, bytes, 4);
}

static void png_begin(FILE *file, uint32_t length, const char *kind) {
    png_number(file, length);
    png_crc = 0xFFFFFFFFu;
    png_bytes(file, (const uint8_t *)kind, 4);
}

static void png_end(FILE *file) { png_number(file, ~png_crc); }

/* Writes RGB pixels, three bytes each without gaps; 0 if the file can't be written. A row is one
   block of deflate that is stored as it is, so the width ends at 21844 pixels. */
static int write_png(const char *path, const uint8_t *rgb, uint32_t width, uint32_t height) {
    const uint32_t row = width * 3 + 1; /* its first byte says: not filtered */
    FILE *file = row > 65535 ? NULL : fopen(path, "wb");
    if (file == NULL) return 0;
    fwrite("\x89PNG\r\n\x1a\n", 1, 8, file);
    png_begin(file, 13, "IHDR");
    png_number(file, width);
    png_number(file, height);
    png_bytes(file, (const uint8_t *)"\x08\x02\0\0\0", 5); /* 8 bits, RGB */
    png_end(file);
    png_begin(file, 2 + height * (row + 5) + 4, "IDAT");
    png_bytes(file, (const uint8_t *)"\x78\x01", 2);
    uint32_t a = 1, b = 0; /* Adler-32 */
    for (uint32_t y = 0; y < height; y++) {
        const uint8_t *pixels = rgb + (size_t)y * (row - 1);
        const uint8_t head[6] = {y + 1 == height, (uint8_t)row,         (uint8_t)(row >> 8),
                                 (uint8_t)~row,   (uint8_t)(~row >> 8), 0};
        png_bytes(file, head, 6);
        png_bytes(file, pixels, row - 1);
        b = (b + a) % 65521;
        for (uint32_t i = 0; i < row - 1; i++) {
            a = (a + pixels[i]) % 65521;
            b = (b + a) % 65521;
        }
    }
    png_number(file, b << 16 | a);
    png_end(file);
    png_begin(file, 0, "IEND");
    png_end(file);
    return fclose(file) == 0;
}

#endif
