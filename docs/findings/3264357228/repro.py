#!/usr/bin/env python3
"""vllm:fused_gate@grouped_topk: a row's result depends on other rows (T=1025, E=256, k=8, sigmoid, float32, bias)

Rule: A row's result depends on other rows.
Seen: row 0: weights are [0.9997515678405762, 0.9997490644454956, 0.999746561050415,
    0.9997458457946777, 0.9997408390045166, 0.9997384548187256, 0.9997384548187256,
    0.9997376203536987] in a batch of 1025 rows and [0.999751627445221, 0.9997490644454956,
    0.9997466206550598, 0.9997458457946777, 0.9997407793998718, 0.9997383952140808,
    0.9997384548187256, 0.9997376203536987] in one of 512 (halves)
With: vllm bare files, expected 0.33.0 on cuda: NVIDIA H100 80GB HBM3.
Exit status: 0 right, 1 wrong.
"""

import importlib.util
import os
import pathlib
import sys

import torch

DEVICE = "cuda"
OUTPUTS = {
    "weights": ((1025, 8), torch.float32),
    "indices": ((1025, 8), torch.int32),
}

def package(name):
    """Return the folder of a package: among bare files if it is there, else as installed."""
    folder = os.environ.get("MOEPROOF_LIBRARIES")
    if folder and pathlib.Path(folder, name).is_dir():
        return pathlib.Path(folder, name)
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ImportError(f"{name} is not installed, nor in the folder that MOEPROOF_LIBRARIES names")
    return pathlib.Path(spec.origin).parent


torch.ops.load_library(str(package("vllm") / "_moe_C_stable_libtorch.abi3.so"))


def factor(args):
    on_output = args.get("apply_routed_scaling_factor_on_output", False)
    return args.get("routed_scaling_factor", 1.0) if on_output else 1.0


SIGMOID = 1


def run(args, outputs):
    weights, indices = torch.ops._moe_C.grouped_topk(
        args["logits"],
        args.get("num_expert_group", 1),
        args.get("topk_group", 1),
        args["topk"],
        args.get("renormalize", True),
        factor(args),
        args["bias"],
        SIGMOID,
    )
    return {"weights": weights, "indices": indices}


def tensor(values, dtype, strides=None, offset=0):
    """Return a tensor inside a larger buffer, so that an access beside it shows; strides count elements."""
    values = torch.tensor(values, dtype=dtype)
    strides, guard = strides or values.stride(), 512 // dtype.itemsize
    size = offset + 1 + sum((n - 1) * s for n, s in zip(values.shape, strides))
    bait = 12352.0 if dtype.is_floating_point else 1
    buffer = torch.full((guard + size + guard,), bait, dtype=dtype, device=DEVICE)
    view = buffer.as_strided(values.shape, strides, guard + offset)
    view.copy_(values)
    return view


def arguments():
    return dict(
        logits=tensor(
            [[7.984066963195801, 8.00244140625, 8.071338653564453, 7.958051681518555,
            7.957679748535156, 7.763611793518066, 7.841151237487793, 8.063786506652832,
            8.09978199005127, 8.300292015075684, 7.972991943359375, 7.999567985534668,
            8.015290260314941, 8.201593399047852, 8.08068561553955, 8.003287315368652,
            7.982630729675293, 7.808020114898682, 7.734455108642578, 8.125343322753906,
            8.018884658813477, 7.967915058135986, 8.015260696411133, 8.000125885009766,
            7.993044376373291, 8.23378849029541, 7.976905822753906, 7.756673812866211,
            8.148063659667969, 7.86505651473999, 7.930356025695801, 8.02187728881836,
            7.834115028381348, 8.00128173828125, 8.071249008178711, 8.09456729888916,
            8.043767929077148, 7.970109939575195, 7.873361110687256, 7.816141128540039,
            7.979617118835449, 7.976970195770264, 7.947181224822998, 7.82525634765625,
            7.804867744445801, 8.021673202514648, 7.972640037536621, 8.079854965209961,
            7.859094619750977, 8.08254623413086, 8.051862716674805, 7.875300407409668,
            8.023863792419434, 7.832370281219482, 7.961616516113281, 8.001428604125977,
            7.858695030212402, 8.027420043945312, 7.952426910400391, 8.044370651245117,
            7.930215835571289, 7.893838405609131, 7.86141300201416, 8.007448196411133,
            8.195667266845703, 7.992159843444824, 7.960020065307617, 7.931971549987793,
            7.951432228088379, 7.866754055023193, 7.97035026550293, 7.8997273445129395,
            7.975735664367676, 8.175804138183594, 7.991053581237793, 7.910703659057617,
            8.058095932006836, 8.057353973388672, 7.969888687133789, 8.177135467529297,
            7.943199157714844, 8.02593994140625, 8.0587797164917, 7.726895332336426,
            7.980854034423828, 7.967094421386719, 8.056777954101562, 7.896117687225342,
            7.931808948516846, 8.139620780944824, 7.991194725036621, 7.957525253295898,
            8.067570686340332, 7.848011016845703, 8.098735809326172, 7.92120361328125,
            7.909585952758789, 7.970097541809082, 8.114270210266113, 7.9670209884643555,
            8.152153015136719, 8.068824768066406, 7.983237266540527, 7.915430068969727,
            8.105337142944336, 7.964217185974121, 8.242470741271973, 7.908053398132324,
            7.994794845581055, 7.86422061920166, 7.982190132141113, 8.044184684753418,
            8.050074577331543, 7.878399848937988, 7.878646373748779, 8.042949676513672,
            8.037203788757324, 8.280393600463867, 8.107048988342285, 8.033401489257812,
            7.986114025115967, 7.930822849273682, 8.068036079406738, 8.244380950927734,
            8.29014778137207, 8.122836112976074, 8.141950607299805, 7.903285026550293,
            7.921673774719238, 8.144731521606445, 8.129064559936523, 7.981961250305176,
            8.119083404541016, 7.831876277923584, 8.017276763916016, 8.18535327911377,
            7.972563743591309, 7.769402503967285, 7.724116325378418, 8.091825485229492,
            8.062097549438477, 7.992720127105713, 7.802270889282227, 7.950304985046387,
            7.812374114990234, 7.987094879150391, 8.072568893432617, 7.765140056610107,
            7.999683856964111, 8.248461723327637, 8.111589431762695, 8.01922607421875,
            7.760952949523926, 7.991430282592773, 7.966437339782715, 8.1676025390625,
            7.959104537963867, 8.190691947937012, 8.228437423706055, 7.980730056762695,
            7.825441360473633, 7.902734756469727, 8.031747817993164, 7.991570472717285,
            8.011821746826172, 7.833079814910889, 7.923622131347656, 7.984912872314453,
            8.177106857299805, 8.118937492370605, 8.056520462036133, 8.105474472045898,
            7.9381890296936035, 7.882929801940918, 7.915053367614746, 8.040844917297363,
            8.106993675231934, 8.067720413208008, 7.751744270324707, 8.065808296203613,
            7.9247541427612305, 8.257600784301758, 7.916156768798828, 7.74937629699707,
            8.064483642578125, 8.009761810302734, 7.979982376098633, 7.828177452087402,
            7.950457572937012, 7.984089374542236, 8.09771728515625, 8.240354537963867,
            8.137516021728516, 8.031417846679688, 8.12106990814209, 7.980442047119141,
            8.277283668518066, 8.01840591430664, 7.877492904663086, 8.074965476989746,
            7.81120491027832, 8.003461837768555, 8.03148078918457, 7.861518859863281,
            7.93501615524292, 7.982317924499512, 7.927669048309326, 8.129852294921875,
            7.8350982666015625, 8.113530158996582, 7.977313041687012, 7.937829494476318,
            7.811900615692139, 8.133139610290527, 8.24848461151123, 8.104047775268555,
            8.011096954345703, 7.917568206787109, 8.056899070739746, 7.8341875076293945,
            8.245519638061523, 8.013829231262207, 7.925823211669922, 7.966602802276611,
            7.936988830566406, 7.934431552886963, 8.047739028930664, 8.09531307220459,
            8.18135929107666, 7.827664852142334, 7.914921760559082, 8.214579582214355,
            8.138113975524902, 8.014766693115234, 8.094672203063965, 8.160645484924316,
            7.9003801345825195, 7.735042572021484, 7.735536575317383, 7.93720817565918,
            8.060685157775879, 7.857762813568115, 8.212494850158691, 7.993864059448242,
            8.102190017700195, 7.943142414093018, 7.920966148376465, 7.9735107421875,
            7.815374374389648, 7.824044227600098, 8.099509239196777, 7.842861175537109,
            7.82990026473999, 7.977565765380859, 8.042909622192383, 8.170906066894531]] * 1025,
            torch.float32,
        ),
        bias=tensor([-2.0] * 256, torch.float32),
        topk=8,
        scoring="sigmoid",
        num_expert_group=1,
        topk_group=1,
        renormalize=False,
        routed_scaling_factor=1.0,
        apply_routed_scaling_factor_on_output=False,
        num_fused_shared_experts=0,
    )


def call(args):
    """Return the outputs of one call."""
    # No right result holds -7.
    outputs = {n: torch.full(shape, -7, dtype=dtype, device=DEVICE) for n, (shape, dtype) in OUTPUTS.items()}
    made = run(args, outputs)
    torch.zeros(1, device=DEVICE)  # a failed launch that nobody checked comes out of the next one
    torch.cuda.synchronize()
    return outputs if made is None else made


def finish(wrong):
    print("WRONG" if wrong else "right")
    sys.exit(1 if wrong else 0)


args = arguments()
first, tokens = call(args), len(args["logits"])


def batch(rows):
    """Return the arguments for these rows of the first call; -1 is a row of NaN."""
    index, other = torch.tensor(rows, dtype=torch.long, device=DEVICE), dict(args)
    other["logits"] = args["logits"][index.clamp(min=0)]
    other["logits"][index < 0] = float("nan")
    return other


def differs(what, args, rows):
    """Say whether rows of another call, which are these rows of the first one, give other bits."""
    found = False
    for name, (shape, dtype) in OUTPUTS.items():
        OUTPUTS[name] = ((len(rows), *shape[1:]), dtype)
    result = call(args)
    for at, row in enumerate(rows):
        for name in OUTPUTS:
            one, two = first[name][row], result[name][at]
            same = torch.equal(one.contiguous().view(torch.uint8), two.contiguous().view(torch.uint8))
            if row >= 0 and not same:
                print(f"{what}: row {row}: {name}\n  at first {one.tolist()}\n  now      {two.tolist()}")
                found = True
    return found


wrong = False
for what, rows in (
    ("halves", [*range(tokens // 2)]),
    ("halves", [*range(tokens // 2, tokens)]),
):
    wrong |= differs(what, batch(rows), rows)
finish(wrong)
