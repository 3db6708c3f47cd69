"""How far engines may lie apart, each figure with its reason; a tolerance is loosened here or nowhere."""

# a returned neighbour's float64 distance over the true k-th distance, less 1: float32 sums over d <= 4096 terms
KNN_DISTANCE = 1e-5

# KMeans inertia over scikit-learn's best of 10: both are local optima of the same sum
KMEANS_INERTIA = 1.005

# KL divergence over openTSNE's on the same affinities: both stop after the same number of iterations
TSNE_KL = 1.05

# task ARI of layer 0, which cannot see the instruction, around its true value 0, in the hidden space
LAYER_ZERO_ARI = 0.02

# errors of linear_cross_entropy over plain torch's own in the same dtype, as a share of the largest true value: both
# round in fp32 at best, in another order; 8 units of 2**-23
LINEAR_CROSS_ENTROPY = 1e-6
# a gradient's last rounding in units of its dtype's eps, where plain torch was luckier: one, since Triton's interpreter
# cuts off what bfloat16 cannot hold (it stores 1.0078 as 1.0), where a GPU rounds and half of it would do
LAST_ROUNDING = 1.0

# errors of transformer_block over plain torch's own, as a share of the largest true value: both round in float32, in
# other orders; 16 units of 2**-23 for an output behind two norms, a softmax and a GELU of its own polynomial
TRANSFORMER_BLOCK = 2e-6
# errors of adamw_step over torch's fused AdamW, as a share of the largest weight: a few roundings a step
ADAMW_STEP = 5e-7
