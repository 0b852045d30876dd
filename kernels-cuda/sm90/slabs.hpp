// Tiles in shared memory as copies leave them and products read them: slabs of 64 columns, rows of 128 bytes, the eight
// 16-byte chunks of a row permuted by the row's number modulo 8 (the 128-byte swizzle).
//
//            column 0        63   64       127
//   row 0    [ slab 0, row 0 ]    [ slab 1, row 0 ] ...     chunk c of row r lies at chunk c ^ (r % 8)
//   row 1    [ slab 0, row 1 ]    [ slab 1, row 1 ] ...
#pragma once

#include "omniflash/numeric.hpp"

namespace omniflash {

constexpr int kSlabColumns = 64;
constexpr unsigned kSlabRowBytes = 128;
// After eight rows the pattern begins again; tiles begin at multiples of this.
constexpr unsigned kSwizzleBytes = 1024;

template <int kRows, int kColumns>
struct SlabTile {
  static constexpr int kSlabs = (kColumns + kSlabColumns - 1) / kSlabColumns;
  static constexpr unsigned kSlabBytes = kRows * kSlabRowBytes;
  static constexpr unsigned kBytes = kSlabs * kSlabBytes;
  static_assert(kSlabBytes % kSwizzleBytes == 0, "slabs begin with a whole pattern");

  unsigned address;

  OMNIFLASH_DEVICE unsigned slab(int index) const { return address + index * kSlabBytes; }

  // Where the 16 bytes of a row from `chunk` (eight columns each) on lie.
  OMNIFLASH_DEVICE unsigned chunk(int row, int chunk) const {
    return slab(chunk / 8) + row * kSlabRowBytes + ((chunk % 8 ^ row % 8) << 4);
  }

  // From the address of chunk 0 or 1 of a row to that of an even number of chunks further on.
  OMNIFLASH_DEVICE static constexpr unsigned further(unsigned chunk, int chunks) {
    return (chunk ^ chunks % 8 << 4) + chunks / 8 * kSlabBytes;
  }

  // Matrix descriptors (PTX ISA, "Matrix Descriptor" of wgmma): address, leading and stride offsets in units of 16 bytes,
  // mode 1 for the 128-byte swizzle. Eight rows are 1024 bytes apart in both.

  // Of 64 rows from `row` on, each a run of the depth (Q, K): 16 deeper is `deeper(step)` further on.
  OMNIFLASH_DEVICE unsigned long long rows_descriptor(int row) const {
    return descriptor(address + row * kSlabRowBytes, 16);
  }
  OMNIFLASH_DEVICE static constexpr unsigned long long deeper(int step) {
    return step % 4 * (32 / 16) + step / 4 * (kSlabBytes / 16);
  }

  // Of rows that are steps of the depth (V): the next 64 columns lie a slab further on, 16 rows deeper 2048 bytes.
  OMNIFLASH_DEVICE unsigned long long columns_descriptor() const { return descriptor(address, kSlabBytes); }
  OMNIFLASH_DEVICE static constexpr unsigned long long rows_deeper(int step) { return step * (16 * kSlabRowBytes / 16); }

 private:
  OMNIFLASH_DEVICE static unsigned long long descriptor(unsigned address, unsigned leading_bytes) {
    return static_cast<unsigned long long>((address & 0x3ffff) >> 4) |
           static_cast<unsigned long long>(leading_bytes >> 4) << 16 |
           static_cast<unsigned long long>(kSwizzleBytes >> 4) << 32 | 1ull << 62;
  }
};

}  // namespace omniflash
