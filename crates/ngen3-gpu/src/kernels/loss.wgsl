// Cross entropy of logits that come in chunks of the vocabulary, [rows, width] from token `first` on, and their gradient. One workgroup a
// row.
//
// STAGE: 0 updates each row's largest logit, the sum of exponentials and the target's logit; FIRST is 1 for the first chunk. 1 turns the
// statistics into losses. 2 replaces the logits by their gradient. 3 adds the sum of all losses to one number, in one workgroup.

struct Params {
    rows: u32,
    width: u32,
    first: u32,
    // STAGE 0: 1/temperature. 2: weight.
    weight: f32,
}

const IGNORE: u32 = 0xFFFFFFFFu;

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> logits: array<f32>;
@group(0) @binding(1) var<storage, read> targets: array<u32>;
// [rows, 3]: largest logit, sum of exponentials, the target's logit.
@group(0) @binding(2) var<storage, read_write> stats: array<f32>;
// [rows], or STAGE 3: [1].
@group(0) @binding(3) var<storage, read_write> losses: array<f32>;

var<workgroup> shared_values: array<f32, 256>;

fn reduce(thread: u32, value: f32, largest: bool) -> f32 {
    workgroupBarrier();
    shared_values[thread] = value;
    workgroupBarrier();
    for (var half = 128u; half > 0u; half /= 2u) {
        if thread < half {
            let other = shared_values[thread + half];
            shared_values[thread] = select(shared_values[thread] + other, max(shared_values[thread], other), largest);
        }
        workgroupBarrier();
    }
    return shared_values[0];
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    if STAGE == 1u {
        for (var row = group.x * 256u + thread; row < p.rows; row += 256u * groups.x) {
            var loss = 0.0;
            if targets[row] != IGNORE {
                loss = stats[3u * row] + log(stats[3u * row + 1u]) - stats[3u * row + 2u];
            }
            losses[row] = loss;
        }
        return;
    }
    if STAGE == 3u {
        var sum = 0.0;
        for (var row = thread; row < p.rows; row += 256u) {
            sum += logits[row];
        }
        let total = reduce(thread, sum, false);
        if thread == 0u {
            losses[0] += total;
        }
        return;
    }
    for (var row = group.x; row < p.rows; row += groups.x) {
        let base = row * p.width;
        let token = targets[row];
        // Wraps around for a token before the first.
        let target_at = token - p.first;
        let ignored = token == IGNORE;
        if STAGE == 0u {
            var before = vec3<f32>(-1e30, 0.0, 0.0);
            if FIRST == 0u {
                before = vec3<f32>(stats[3u * row], stats[3u * row + 1u], stats[3u * row + 2u]);
            }
            var largest = before.x;
            for (var i = thread; i < p.width; i += 256u) {
                largest = max(largest, logits[base + i] * p.weight);
            }
            largest = reduce(thread, largest, true);
            var sum = 0.0;
            for (var i = thread; i < p.width; i += 256u) {
                sum += exp(logits[base + i] * p.weight - largest);
            }
            sum = reduce(thread, sum, false);
            if thread == 0u {
                stats[3u * row] = largest;
                stats[3u * row + 1u] = before.y * exp(before.x - largest) + sum;
                var logit = before.z;
                if !ignored && target_at < p.width {
                    logit = logits[base + target_at] * p.weight;
                }
                stats[3u * row + 2u] = logit;
            }
        } else {
            let largest = stats[3u * row];
            let scale = select(p.weight / stats[3u * row + 1u], 0.0, ignored);
            for (var i = thread; i < p.width; i += 256u) {
                var gradient = exp(logits[base + i] - largest) * scale;
                if i == target_at && !ignored {
                    gradient -= p.weight;
                }
                logits[base + i] = gradient;
            }
        }
    }
}
