// STAGE 0: x[t] = (wte[token[t]] + wpe[position[t]])·mask, of those tokens whose row is in this part of the table, `rows` from row
// `first`. STAGE 1: dtable[id] += Σ dx[t]·mask over the tokens of an id, in their order, one workgroup an id.

struct Params {
    tokens: u32,
    width: u32,
    first: u32,
    rows: u32,
    // STAGE 1: first of the ids in `groups`.
    start: u32,
    threshold: u32,
    scale: f32,
    key_0: u32,
    key_1: u32,
}

var<immediate> p: Params;
// STAGE 0: [tokens] ids. STAGE 1: [tokens] token indices, sorted by id.
@group(0) @binding(0) var<storage, read> ids: array<u32>;
// STAGE 0: [tokens] positions. STAGE 1: [ids, 3] id, and its range in `ids`.
@group(0) @binding(1) var<storage, read> positions: array<u32>;
// STAGE 0: wte. STAGE 1: dx.
@group(0) @binding(2) var<storage, read> table: array<f32>;
@group(0) @binding(3) var<storage, read> wpe: array<f32>;
// STAGE 0: x. STAGE 1: dtable.
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    if STAGE == 0u {
        for (var i = group.x * 256u + thread; i < p.tokens * p.width; i += 256u * groups.x) {
            let token = i / p.width;
            let column = i % p.width;
            // Wraps around for a row before the first.
            let row = ids[token] - p.first;
            if row < p.rows {
                var value = table[row * p.width + column];
                if WPE == 1u {
                    value += wpe[positions[token] * p.width + column];
                }
                out[i] = value * dropout_factor(i, p.threshold, p.scale, p.key_0, p.key_1);
            }
        }
    } else {
        let which = 3u * (p.start + group.x);
        let row = positions[which] - p.first;
        for (var column = thread; column < p.width; column += 256u) {
            var sum = 0.0;
            for (var j = positions[which + 1u]; j < positions[which + 2u]; j++) {
                let i = ids[j] * p.width + column;
                sum += table[i] * dropout_factor(i, p.threshold, p.scale, p.key_0, p.key_1);
            }
            out[row * p.width + column] += sum;
        }
    }
}
