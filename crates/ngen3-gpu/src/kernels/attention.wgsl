// Causal attention in tiles of 32 queries × 32 keys, for heads of any width: the width passes through shared memory 32 columns at a
// time. Each of 256 threads holds 2 × 2 scores, rows ty and ty + 16 of columns tx and tx + 16. Probabilities are never kept: the
// backward pass recomputes them from `lse`, the logarithm of their sum.
//
// PART: 0 forward, 1 gradient of the queries, 2 gradients of keys and values, which loops over the queries.
// CHUNKS: columns of a head / 32, rounded up. PAGED: 1 if keys are in pages of 32 tokens. DROPOUT: 1 if probabilities are dropped.

struct Params {
    q_stride: u32,
    kv_stride: u32,
    k_column: u32,
    v_column: u32,
    out_stride: u32,
    head_width: u32,
    heads: u32,
    // Heads of queries for each head of keys.
    group: u32,
    // 1/√head_width
    scale: f32,
    threshold: u32,
    drop_scale: f32,
    key_0: u32,
    key_1: u32,
}

// A tile of a sequence's tokens: TILE_FIELDS numbers each.
//   0 row of its first token    1 tokens, at most 32    2 index of its first token among the sequence's keys
//   3 row of the sequence's first token    4 its tokens    5 row of its prefix' first token    6 tokens of its prefix
//   7 dropout index of the sequence's first probability    8 first of its pages
const TILE_FIELDS: u32 = 9u;

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> queries: array<f32>;
@group(0) @binding(1) var<storage, read> keys: array<f32>;
@group(0) @binding(2) var<storage, read> tiles: array<u32>;
@group(0) @binding(3) var<storage, read> pages: array<u32>;
// [tokens, heads]; the forward pass writes it.
@group(0) @binding(4) var<storage, read_write> lse: array<f32>;
// PART 0: attention's output. Others: the gradient of queries, keys and values, laid out as they are.
@group(0) @binding(5) var<storage, read_write> out: array<f32>;
// PART 1, 2: gradient of attention's output, and [tokens, heads] its product with the output.
@group(0) @binding(6) var<storage, read> dout: array<f32>;
@group(0) @binding(7) var<storage, read> inner: array<f32>;

// A row is one element longer than a tile, so that threads that read down a column read different banks.
const ROW: u32 = 33u;

var<workgroup> left: array<f32, 32 * ROW>;
var<workgroup> right: array<f32, 32 * ROW>;
var<workgroup> scores: array<f32, 32 * ROW>;
var<workgroup> slopes: array<f32, 32 * ROW>;

const NOTHING: f32 = -1e30;

struct Tile {
    row: u32,
    count: u32,
    index: u32,
    own: u32,
    own_len: u32,
    prefix: u32,
    prefix_len: u32,
    mask: u32,
    pages: u32,
}

fn tile_at(i: u32) -> Tile {
    let at = i * TILE_FIELDS;
    return Tile(tiles[at], tiles[at + 1u], tiles[at + 2u], tiles[at + 3u], tiles[at + 4u], tiles[at + 5u], tiles[at + 6u],
        tiles[at + 7u], tiles[at + 8u]);
}

// Row of the key with this index in its sequence.
fn key_row(t: Tile, key: u32) -> u32 {
    if PAGED == 1u {
        return pages[t.pages + key / 32u] * 32u + key % 32u;
    }
    return select(t.own + key - t.prefix_len, t.prefix + key, key < t.prefix_len);
}

// Sum over 32 columns of `left` and `right` for a thread's four scores.
fn dots(tx: u32, ty: u32) -> vec4<f32> {
    var sum = vec4<f32>();
    for (var c = 0u; c < 32u; c++) {
        let a = vec2<f32>(left[ty * ROW + c], left[(ty + 16u) * ROW + c]);
        let b = vec2<f32>(right[tx * ROW + c], right[(tx + 16u) * ROW + c]);
        sum = fma(a.xxyy, b.xyxy, sum);
    }
    return sum;
}

// Factor of the probability of a query's key, by their indices in a sequence.
fn factor(t: Tile, head: u32, query: u32, key: u32) -> f32 {
    if DROPOUT == 0u {
        return 1.0;
    }
    let index = t.mask + (head * t.own_len + query) * t.own_len + key;
    return dropout_factor(index, p.threshold, p.drop_scale, p.key_0, p.key_1);
}

// Loads 32 columns of a tile's queries.
fn load_queries(t: Tile, head: u32, chunk: u32, thread: u32) {
    for (var e = thread; e < 1024u; e += 256u) {
        let c = chunk * 32u + e % 32u;
        var value = 0.0;
        if e / 32u < t.count && c < p.head_width {
            value = queries[(t.row + e / 32u) * p.q_stride + head * p.head_width + c];
        }
        left[e / 32u * ROW + e % 32u] = value;
    }
}

// Loads 32 columns of the gradient of a tile's output.
fn load_dout(t: Tile, head: u32, chunk: u32, thread: u32) {
    for (var e = thread; e < 1024u; e += 256u) {
        let c = chunk * 32u + e % 32u;
        var value = 0.0;
        if e / 32u < t.count && c < p.head_width {
            value = dout[(t.row + e / 32u) * p.out_stride + head * p.head_width + c];
        }
        left[e / 32u * ROW + e % 32u] = value;
    }
}

// Loads 32 columns of 32 keys, or of values, from the key with this index on, of the `end` that there are.
fn load_keys(t: Tile, kv_head: u32, first: u32, end: u32, column: u32, chunk: u32, thread: u32) {
    for (var e = thread; e < 1024u; e += 256u) {
        let c = chunk * 32u + e % 32u;
        let key = first + e / 32u;
        var value = 0.0;
        if key < end && c < p.head_width {
            value = keys[key_row(t, key) * p.kv_stride + column + kv_head * p.head_width + c];
        }
        right[e / 32u * ROW + e % 32u] = value;
    }
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let tx = thread % 16u;
    let ty = thread / 16u;
    let t = tile_at(group.x);
    if PART == 0u {
        forward(t, group.y, tx, ty, thread);
    } else if PART == 1u {
        gradient_of_queries(t, group.y, tx, ty, thread);
    } else {
        gradient_of_keys(t, group.x, group.y, tx, ty, thread);
    }
}

fn forward(t: Tile, head: u32, tx: u32, ty: u32, thread: u32) {
    let end = t.index + t.count;
    // Of rows ty and ty + 16: largest score, sum of probabilities, and their product with the values.
    var largest = vec2<f32>(NOTHING);
    var total = vec2<f32>();
    //@repeat C CHUNKS
    var sum_$C = vec4<f32>();
    //@end
    for (var first = 0u; first < end; first += 32u) {
        var s = vec4<f32>();
        for (var chunk = 0u; chunk < CHUNKS; chunk++) {
            load_queries(t, head, chunk, thread);
            load_keys(t, head / p.group, first, end, p.k_column, chunk, thread);
            workgroupBarrier();
            s += dots(tx, ty);
            workgroupBarrier();
        }
        // A query sees the keys up to itself.
        let query = t.index + vec2<u32>(ty, ty + 16u);
        let key = first + vec2<u32>(tx, tx + 16u);
        let seen = (key.xyxy <= query.xxyy) & (vec4<u32>(ty, ty, ty + 16u, ty + 16u) < vec4<u32>(t.count));
        s = select(vec4<f32>(NOTHING), s * p.scale, seen);
        scores[ty * ROW + tx] = s.x;
        scores[ty * ROW + tx + 16u] = s.y;
        scores[(ty + 16u) * ROW + tx] = s.z;
        scores[(ty + 16u) * ROW + tx + 16u] = s.w;
        workgroupBarrier();
        var now = largest;
        for (var c = 0u; c < 32u; c++) {
            now = max(now, vec2<f32>(scores[ty * ROW + c], scores[(ty + 16u) * ROW + c]));
        }
        workgroupBarrier();
        let shrink = exp(largest - now);
        largest = now;
        var probability = select(vec4<f32>(), exp(s - now.xxyy), seen);
        if DROPOUT == 1u {
            // The sign tells that a probability is dropped: it still counts in the sum.
            probability *= vec4<f32>(
                select(1.0, -1.0, factor(t, head, query.x, key.x) == 0.0),
                select(1.0, -1.0, factor(t, head, query.x, key.y) == 0.0),
                select(1.0, -1.0, factor(t, head, query.y, key.x) == 0.0),
                select(1.0, -1.0, factor(t, head, query.y, key.y) == 0.0),
            );
        }
        scores[ty * ROW + tx] = probability.x;
        scores[ty * ROW + tx + 16u] = probability.y;
        scores[(ty + 16u) * ROW + tx] = probability.z;
        scores[(ty + 16u) * ROW + tx + 16u] = probability.w;
        total *= shrink;
        //@repeat C CHUNKS
        sum_$C *= shrink.xxyy;
        load_keys(t, head / p.group, first, end, p.v_column, $Cu, thread);
        workgroupBarrier();
        for (var k = 0u; k < 32u; k++) {
            let probabilities = vec2<f32>(scores[ty * ROW + k], scores[(ty + 16u) * ROW + k]);
            let values = vec2<f32>(right[k * ROW + tx], right[k * ROW + tx + 16u]);
            if $Cu == 0u {
                total += abs(probabilities);
            }
            sum_$C = fma(max(probabilities, vec2<f32>()).xxyy, values.xyxy, sum_$C);
        }
        workgroupBarrier();
        //@end
    }
    let factor = p.drop_scale / total;
    //@repeat I 2
    if ty + 16u * $Iu < t.count {
        let row = t.row + ty + 16u * $Iu;
        if tx == 0u {
            lse[row * p.heads + head] = largest[$I] + log(total[$I]);
        }
        //@repeat C CHUNKS
        //@repeat J 2
        if 32u * $Cu + tx + 16u * $Ju < p.head_width {
            out[row * p.out_stride + head * p.head_width + 32u * $Cu + tx + 16u * $Ju] = sum_$C[2u * $Iu + $Ju] * factor[$I];
        }
        //@end
        //@end
    }
    //@end
}

// Computes the probabilities of a tile's queries for 32 keys, dropped, into `scores`, and the gradient of their scores into
// `slopes`.
fn differentiate(t: Tile, head: u32, first: u32, end: u32, tx: u32, ty: u32, thread: u32) {
    var s = vec4<f32>();
    var dp = vec4<f32>();
    for (var chunk = 0u; chunk < CHUNKS; chunk++) {
        load_queries(t, head, chunk, thread);
        load_keys(t, head / p.group, first, end, p.k_column, chunk, thread);
        workgroupBarrier();
        s += dots(tx, ty);
        workgroupBarrier();
        load_dout(t, head, chunk, thread);
        load_keys(t, head / p.group, first, end, p.v_column, chunk, thread);
        workgroupBarrier();
        dp += dots(tx, ty);
        workgroupBarrier();
    }
    //@repeat I 2
    //@repeat J 2
    {
        let i = ty + 16u * $Iu;
        let key = first + tx + 16u * $Ju;
        var probability = 0.0;
        var slope = 0.0;
        if i < t.count && key <= t.index + i {
            let at = (t.row + i) * p.heads + head;
            let kept = factor(t, head, t.index + i, key);
            probability = exp(s[2u * $Iu + $Ju] * p.scale - lse[at]);
            slope = probability * (kept * dp[2u * $Iu + $Ju] - inner[at]) * p.scale;
            probability *= kept;
        }
        scores[i * ROW + tx + 16u * $Ju] = probability;
        slopes[i * ROW + tx + 16u * $Ju] = slope;
    }
    //@end
    //@end
}

fn gradient_of_queries(t: Tile, head: u32, tx: u32, ty: u32, thread: u32) {
    let end = t.index + t.count;
    //@repeat C CHUNKS
    var sum_$C = vec4<f32>();
    //@end
    for (var first = 0u; first < end; first += 32u) {
        differentiate(t, head, first, end, tx, ty, thread);
        //@repeat C CHUNKS
        load_keys(t, head / p.group, first, end, p.k_column, $Cu, thread);
        workgroupBarrier();
        for (var k = 0u; k < 32u; k++) {
            let slope = vec2<f32>(slopes[ty * ROW + k], slopes[(ty + 16u) * ROW + k]);
            let value = vec2<f32>(right[k * ROW + tx], right[k * ROW + tx + 16u]);
            sum_$C = fma(slope.xxyy, value.xyxy, sum_$C);
        }
        workgroupBarrier();
        //@end
    }
    //@repeat C CHUNKS
    //@repeat I 2
    //@repeat J 2
    if ty + 16u * $Iu < t.count && 32u * $Cu + tx + 16u * $Ju < p.head_width {
        let row = t.row + ty + 16u * $Iu;
        out[row * p.q_stride + head * p.head_width + 32u * $Cu + tx + 16u * $Ju] = sum_$C[2u * $Iu + $Ju];
    }
    //@end
    //@end
    //@end
}

// The tile's tokens are the keys.
fn gradient_of_keys(own: Tile, index: u32, kv_head: u32, tx: u32, ty: u32, thread: u32) {
    let end = own.index + own.count;
    // Tiles of the sequence from this one on.
    let tiles_left = (own.own_len - own.index + 31u) / 32u;
    //@repeat C CHUNKS
    var dk_$C = vec4<f32>();
    var dv_$C = vec4<f32>();
    //@end
    for (var head = kv_head * p.group; head < (kv_head + 1u) * p.group; head++) {
        for (var i = 0u; i < tiles_left; i++) {
            let t = tile_at(index + i);
            differentiate(t, head, own.index, end, tx, ty, thread);
            //@repeat C CHUNKS
            load_dout(t, head, $Cu, thread);
            workgroupBarrier();
            for (var q = 0u; q < 32u; q++) {
                let probability = vec2<f32>(scores[q * ROW + ty], scores[q * ROW + ty + 16u]);
                let value = vec2<f32>(left[q * ROW + tx], left[q * ROW + tx + 16u]);
                dv_$C = fma(probability.xxyy, value.xyxy, dv_$C);
            }
            workgroupBarrier();
            load_queries(t, head, $Cu, thread);
            workgroupBarrier();
            for (var q = 0u; q < 32u; q++) {
                let slope = vec2<f32>(slopes[q * ROW + ty], slopes[q * ROW + ty + 16u]);
                let value = vec2<f32>(left[q * ROW + tx], left[q * ROW + tx + 16u]);
                dk_$C = fma(slope.xxyy, value.xyxy, dk_$C);
            }
            workgroupBarrier();
            //@end
        }
    }
    //@repeat C CHUNKS
    //@repeat I 2
    //@repeat J 2
    if ty + 16u * $Iu < own.count && 32u * $Cu + tx + 16u * $Ju < p.head_width {
        let row = own.row + ty + 16u * $Iu;
        let column = kv_head * p.head_width + 32u * $Cu + tx + 16u * $Ju;
        out[row * p.kv_stride + p.k_column + column] = dk_$C[2u * $Iu + $Ju];
        out[row * p.kv_stride + p.v_column + column] = dv_$C[2u * $Iu + $Ju];
    }
    //@end
    //@end
    //@end
}
