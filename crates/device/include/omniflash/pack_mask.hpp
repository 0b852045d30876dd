// Packs a mask tensor for the kernels that follow: what each block of 64 rows and 64 keys shows, and the bits of bools.
//
//                keys: a span of 32 blocks of 64
//              +-----+-----+-----+-- ... --+       A block of threads reads the rows of one block and the keys of one span
//    rows of   |  0  |  1  |  2  |         |       once, 16 bytes a thread side by side, kRowsAtOnce loads of a thread in
//    one block |     |     |     |         |       flight. It writes one pair of words, two bits a block of keys, and of
//              +-----+-----+-----+-- ... --+       bools one bit a key.
//
// Rows and keys past the end of a sequence are neither read nor counted where the tensor has a plane for each sequence; one
// plane for all of them is packed whole. The instance chooses Element (unsigned char of bools) and kUnitBytes, the bytes
// that are loaded at once: 16, 4, or those of an element, the only ones for keys that do not lie side by side.

#include "omniflash/seen_blocks.hpp"
#include "instance.hpp"

namespace omniflash {

using namespace instance;

constexpr int kThreads = 256;
constexpr bool kHasBits = sizeof(Element) == 1;
constexpr int kChunkKeys = 16 / sizeof(Element);
constexpr int kChunks = MaskBlocks::kSpan / kChunkKeys;  // of a row
constexpr int kBlockChunks = MaskBlocks::kBlock / kChunkKeys;
constexpr int kRowsAtOnce = kUnitBytes >= 4 ? 8 : 2;
constexpr int kRowGroups = kThreads > kChunks ? kThreads / kChunks : 1;  // rows that the threads share out

// The bytes of a load.
template <int kBytes>
struct UnitOf;
template <>
struct UnitOf<16> {
  struct alignas(16) Type {
    unsigned words[4];
  };
};
template <>
struct UnitOf<4> {
  using Type = unsigned;
};
template <>
struct UnitOf<2> {
  using Type = unsigned short;
};
template <>
struct UnitOf<1> {
  using Type = unsigned char;
};

// Bytes 4 i .. 4 i + 3 of some units.
OMNIFLASH_DEVICE unsigned word_of(const UnitOf<16>::Type* units, int i) { return units[i / 4].words[i % 4]; }
OMNIFLASH_DEVICE unsigned word_of(const unsigned* units, int i) { return units[i]; }
OMNIFLASH_DEVICE unsigned word_of(const unsigned short* units, int i) {
  return units[2 * i] | static_cast<unsigned>(units[2 * i + 1]) << 16;
}
OMNIFLASH_DEVICE unsigned word_of(const unsigned char* units, int i) {
  const unsigned high = units[4 * i + 2] | static_cast<unsigned>(units[4 * i + 3]) << 8;
  return units[4 * i] | static_cast<unsigned>(units[4 * i + 1]) << 8 | high << 16;
}

// Keys side by side.
struct alignas(16) Chunk {
  using Unit = UnitOf<kUnitBytes>::Type;
  static constexpr int kUnits = 16 / kUnitBytes, kUnitKeys = kUnitBytes / sizeof(Element);
  struct Elements {
    Element values[kUnitKeys];
  };
  // What is not loaded is 0: it goes through sums and products before it is left out, and must be some number.
  Unit units[kUnits] = {};

  // Of `count` keys that exist from `from` on.
  OMNIFLASH_DEVICE void load(const Element* from, long long key_stride, int count) {
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      const Element* unit = from + i * kUnitKeys * key_stride;
      if ((i + 1) * kUnitKeys <= count) {
        units[i] = *reinterpret_cast<const Unit*>(unit);
      } else if (i * kUnitKeys < count) {
        // Only a part of the unit is the tensor's.
        load_part(i, unit, count - i * kUnitKeys);
      }
    }
  }
  OMNIFLASH_DEVICE void load_part(int unit, const Element* from, int count) {
    Elements elements = {};
#pragma unroll
    for (int i = 0; i < kUnitKeys; ++i) {
      if (i < count) elements.values[i] = from[i];
    }
    units[unit] = __builtin_bit_cast(Unit, elements);
  }
  OMNIFLASH_DEVICE unsigned word(int i) const { return word_of(units, i); }
};

// Words of elements that are all -inf, and the bits of an element that are 0 in both zeros.
template <class T>
constexpr unsigned kHiddenWord = 0xff800000u;
template <class T>
constexpr unsigned kMagnitude = 0x7fffffffu;
template <>
inline constexpr unsigned kHiddenWord<float16> = 0xfc00fc00u;
template <>
inline constexpr unsigned kMagnitude<float16> = 0x7fff7fffu;
template <>
inline constexpr unsigned kHiddenWord<bfloat16> = 0xff80ff80u;
template <>
inline constexpr unsigned kMagnitude<bfloat16> = 0x7fff7fffu;

// Which elements of a chunk exist: of bools a bit each, of values all bits of each.
struct Existing {
  unsigned words[kHasBits ? 1 : 4];

  OMNIFLASH_DEVICE explicit Existing(int count) {
    if constexpr (kHasBits) {
      words[0] = low_bits(count);
    } else {
      constexpr int kOfWord = 4 / sizeof(Element);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int here = count - i * kOfWord;
        words[i] = here >= kOfWord ? ~0u : here <= 0 ? 0u : 0xffffu;
      }
    }
  }
};

// Bit i: byte i of a word is not 0.
OMNIFLASH_DEVICE unsigned bits_of_bytes(unsigned word) {
  // The highest bit of each byte, then one product that brings the four side by side.
  const unsigned high = (((word & 0x7f7f7f7fu) + 0x7f7f7f7fu) | word) & 0x80808080u;
  return (high >> 7) * 0x01020408u >> 24 & 15;
}

// What was found: not 0 where a key is visible, and where the mask does something to one.
struct Found {
  unsigned shown = 0, changed = 0;

  // Of bools; their bits.
  OMNIFLASH_DEVICE unsigned add_bools(const Chunk& chunk, const Existing& existing) {
    unsigned visible = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) visible |= bits_of_bytes(chunk.word(i)) << 4 * i;
    visible &= existing.words[0];
    shown |= visible;
    changed |= visible ^ existing.words[0];
    return visible;
  }
  OMNIFLASH_DEVICE void add_values(const Chunk& chunk, const Existing& existing) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      shown |= (chunk.word(i) ^ kHiddenWord<Element>) & existing.words[i];
      changed |= chunk.word(i) & kMagnitude<Element> & existing.words[i];
    }
  }
  OMNIFLASH_DEVICE unsigned bits() const { return (shown != 0 ? kShown : 0u) | (changed != 0 ? kChanged : 0u); }
};

// The part of the tensor that a block of threads packs.
struct MaskPart {
  int batch, head, row_block, span;
  int num_rows, num_keys;  // that exist, from the first of the part on

  OMNIFLASH_DEVICE MaskPart(const AttentionParameters& parameters, const PackMaskParameters& packing, unsigned block) {
    span = block % packing.spans;
    row_block = block / packing.spans % packing.row_blocks;
    const unsigned plane = block / packing.spans / packing.row_blocks;
    head = plane % packing.heads;
    batch = plane / packing.heads;
    num_rows = packing.rows;
    num_keys = packing.keys;
    if (packing.batches > 1) {
      const Sequence sequence(parameters, batch);
      num_rows = minimum(num_rows, sequence.q_len);
      num_keys = minimum(num_keys, sequence.kv_len);
    }
    num_rows = minimum(maximum(num_rows - row_block * MaskBlocks::kBlock, 0), MaskBlocks::kBlock);
    num_keys = minimum(maximum(num_keys - span * MaskBlocks::kSpan, 0), MaskBlocks::kSpan);
  }
};

// What one thread finds in its chunk of keys of all of its rows.
OMNIFLASH_DEVICE Found pack_chunk(const PackMaskParameters& packing, const MaskPart& part, int chunk, int first_row) {
  const int count = minimum(part.num_keys - chunk * kChunkKeys, kChunkKeys);
  const long long row = static_cast<long long>(part.row_block) * MaskBlocks::kBlock;
  const long long key = static_cast<long long>(part.span) * MaskBlocks::kSpan + chunk * kChunkKeys;
  const Element* from = static_cast<const Element*>(packing.data) + part.batch * packing.batch_stride +
                        part.head * packing.head_stride + row * packing.row_stride + key * packing.key_stride;
  const long long plane = static_cast<long long>(part.batch) * packing.heads + part.head;
  [[maybe_unused]] unsigned short* bits =
      static_cast<unsigned short*>(packing.bits) + (plane * packing.rows + row) * 2 * packing.row_words + key / 16;
  Found found;
  if (count <= 0) return found;
  const Existing existing(count);
#pragma unroll 1
  for (int rows = first_row; rows < part.num_rows; rows += kRowsAtOnce * kRowGroups) {
    Chunk chunks[kRowsAtOnce];
#pragma unroll
    for (int i = 0; i < kRowsAtOnce; ++i) {
      const int at = rows + i * kRowGroups;
      if (at < part.num_rows) chunks[i].load(from + at * packing.row_stride, packing.key_stride, count);
    }
#pragma unroll
    for (int i = 0; i < kRowsAtOnce; ++i) {
      const int at = rows + i * kRowGroups;
      if (at >= part.num_rows) continue;
      if constexpr (kHasBits) {
        const unsigned visible = found.add_bools(chunks[i], existing);
        bits[static_cast<long long>(at) * 2 * packing.row_words] = static_cast<unsigned short>(visible);
      } else {
        found.add_values(chunks[i], existing);
      }
    }
  }
  return found;
}

}  // namespace omniflash

OMNIFLASH_KERNEL(omniflash::kThreads)
omniflash_pack_mask(OMNIFLASH_PARAMETER omniflash::AttentionParameters parameters,
                    OMNIFLASH_PARAMETER omniflash::PackMaskParameters packing) {
  using namespace omniflash;
  OMNIFLASH_SHARED unsigned char found[kRowGroups * kChunks];
  OMNIFLASH_SHARED unsigned char found_in_block[32];
  const int thread = thread_index();
  const MaskPart part(parameters, packing, block_index_x());
  for (int i = thread; i < kRowGroups * kChunks; i += kThreads) {
    found[i] = static_cast<unsigned char>(pack_chunk(packing, part, i % kChunks, i / kChunks).bits());
  }
  barrier();
  if (thread < 32) {
    unsigned all = 0;
    for (int i = 0; i < kRowGroups * kBlockChunks; ++i) {
      all |= found[i / kBlockChunks * kChunks + thread * kBlockChunks + i % kBlockChunks];
    }
    found_in_block[thread] = static_cast<unsigned char>(all);
  }
  barrier();
  if (thread == 0) store_seen(packing, found_in_block);
  if (block_index_x() == 0) store_starts<kThreads>(parameters, packing);
}
