// Rotates each head's pairs (xᵢ, xᵢ₊ₙ), n half a head's width, by the angles of the token's position, in place. DIRECTION: 0 forward, 1
// back, of a gradient.

struct Params {
    tokens: u32,
    heads: u32,
    half_width: u32,
    stride: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> positions: array<u32>;
// [positions, half_width, 2]: cosine and sine, scaled.
@group(0) @binding(1) var<storage, read> table: array<f32>;
@group(0) @binding(2) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let each = p.heads * p.half_width;
    for (var i = id.x; i < p.tokens * each; i += 256u * groups.x) {
        let token = i / each;
        let pair = i % p.half_width;
        let head = i % each / p.half_width;
        let at = 2u * (positions[token] * p.half_width + pair);
        let cosine = table[at];
        let sine = select(table[at + 1u], -table[at + 1u], DIRECTION == 1u);
        let place = token * p.stride + head * 2u * p.half_width + pair;
        let a = x[place];
        let b = x[place + p.half_width];
        x[place] = a * cosine - b * sine;
        x[place + p.half_width] = b * cosine + a * sine;
    }
}
