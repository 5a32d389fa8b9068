// The factor of an element that dropout keeps or drops: ngen3_engine::Dropout::factor. A threshold of 0 drops nothing.
fn dropout_factor(index: u32, threshold: u32, scale: f32, key_0: u32, key_1: u32) -> f32 {
    var h = (index ^ key_0) * 0x9E3779B1u + key_1;
    h = (h ^ (h >> 16u)) * 0x7FEB352Du;
    h = (h ^ (h >> 15u)) * 0x846CA68Bu;
    h = h ^ (h >> 16u);
    return select(scale, 0.0, h < threshold);
}
