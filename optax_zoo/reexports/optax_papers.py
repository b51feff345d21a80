"""The papers behind optax's methods."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a method was published: `arxiv` is an id, `url` stands in where there is none."""

    title: str
    authors: str  # "Last, First; Last, First"
    year: int
    arxiv: str = ""
    url: str = ""


SOURCES: dict[str, Source] = {
    "adam": Source(
        "Adam: A Method for Stochastic Optimization",
        "Kingma, Diederik P.; Ba, Jimmy",
        2014,
        arxiv="1412.6980",
    ),
    "adamw": Source(
        "Decoupled Weight Decay Regularization", "Loshchilov, Ilya; Hutter, Frank", 2017, arxiv="1711.05101"
    ),
    "nadam": Source(
        "Incorporating Nesterov Momentum into Adam",
        "Dozat, Timothy",
        2016,
        url="https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ",
    ),
    "amsgrad": Source(
        "On the Convergence of Adam and Beyond",
        "Reddi, Sashank J.; Kale, Satyen; Kumar, Sanjiv",
        2019,
        arxiv="1904.09237",
    ),
    "adagrad": Source(
        "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization",
        "Duchi, John; Hazan, Elad; Singer, Yoram",
        2011,
        url="https://jmlr.org/papers/v12/duchi11a.html",
    ),
    "adadelta": Source("ADADELTA: An Adaptive Learning Rate Method", "Zeiler, Matthew D.", 2012, arxiv="1212.5701"),
    "rmsprop": Source(
        "Neural Networks for Machine Learning, Lecture 6a: Overview of mini-batch gradient descent",
        "Hinton, Geoffrey; Srivastava, Nitish; Swersky, Kevin",
        2012,
        url="https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf",
    ),
    "yogi": Source(
        "Adaptive Methods for Nonconvex Optimization",
        "Zaheer, Manzil; Reddi, Sashank; Sachan, Devendra; Kale, Satyen; Kumar, Sanjiv",
        2018,
        url="https://proceedings.neurips.cc/paper/2018/file/90365351ccc7437a1309dc64e4db32a3-Paper.pdf",
    ),
    "radam": Source(
        "On the Variance of the Adaptive Learning Rate and Beyond",
        "Liu, Liyuan; Jiang, Haoming; He, Pengcheng; Chen, Weizhu; Liu, Xiaodong; Gao, Jianfeng; Han, Jiawei",
        2019,
        arxiv="1908.03265",
    ),
    "lion": Source(
        "Symbolic Discovery of Optimization Algorithms",
        "Chen, Xiangning; Liang, Chen; Huang, Da; Real, Esteban; Wang, Kaiyuan; Liu, Yao; Pham, Hieu;"
        " Dong, Xuanyi; Luong, Thang; Hsieh, Cho-Jui; Lu, Yifeng; Le, Quoc V.",
        2023,
        arxiv="2302.06675",
    ),
    "sgd": Source(
        "A Stochastic Approximation Method",
        "Robbins, Herbert; Monro, Sutton",
        1951,
        url="https://doi.org/10.1214/aoms/1177729586",
    ),
    "sign_sgd": Source(
        "signSGD: Compressed Optimisation for Non-Convex Problems",
        "Bernstein, Jeremy; Wang, Yu-Xiang; Azizzadenesheli, Kamyar; Anandkumar, Anima",
        2018,
        arxiv="1802.04434",
    ),
    "noisy_sgd": Source(
        "Adding Gradient Noise Improves Learning for Very Deep Networks",
        "Neelakantan, Arvind; Vilnis, Luke; Le, Quoc V.; Sutskever, Ilya; Kaiser, Lukasz; Kurach,"
        " Karol; Martens, James",
        2015,
        arxiv="1511.06807",
    ),
    "optimistic_gradient_descent": Source(
        "A Unified Analysis of Extra-gradient and Optimistic Gradient Methods for Saddle Point"
        " Problems: Proximal Point Approach",
        "Mokhtari, Aryan; Ozdaglar, Asuman; Pattathil, Sarath",
        2019,
        arxiv="1901.08511",
    ),
    "optimistic_adam_v2": Source(
        "Training GANs with Optimism",
        "Daskalakis, Constantinos; Ilyas, Andrew; Syrgkanis, Vasilis; Zeng, Haoyang",
        2017,
        arxiv="1711.00141",
    ),
    "lamb": Source(
        "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes",
        "You, Yang; Li, Jing; Reddi, Sashank; Hseu, Jonathan; Kumar, Sanjiv; Bhojanapalli, Srinadh;"
        " Song, Xiaodan; Demmel, James; Keutzer, Kurt; Hsieh, Cho-Jui",
        2019,
        arxiv="1904.00962",
    ),
    "lars": Source(
        "Large Batch Training of Convolutional Networks",
        "You, Yang; Gitman, Igor; Ginsburg, Boris",
        2017,
        arxiv="1708.03888",
    ),
    "sm3": Source(
        "Memory-Efficient Adaptive Optimization",
        "Anil, Rohan; Gupta, Vineet; Koren, Tomer; Singer, Yoram",
        2019,
        arxiv="1901.11150",
    ),
    "adan": Source(
        "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models",
        "Xie, Xingyu; Zhou, Pan; Li, Huan; Lin, Zhouchen; Yan, Shuicheng",
        2022,
        arxiv="2208.06677",
    ),
    "novograd": Source(
        "Stochastic Gradient Methods with Layer-wise Adaptive Moments for Training of Deep Networks",
        "Ginsburg, Boris; Castonguay, Patrice; Hrinchuk, Oleksii; Kuchaiev, Oleksii; Lavrukhin,"
        " Vitaly; Leary, Ryan; Li, Jason; Nguyen, Huyen; Zhang, Yang; Cohen, Jonathan M.",
        2019,
        arxiv="1905.11286",
    ),
    "rprop": Source(
        "A Direct Adaptive Method for Faster Backpropagation Learning: The RPROP Algorithm",
        "Riedmiller, Martin; Braun, Heinrich",
        1993,
        url="https://doi.org/10.1109/ICNN.1993.298623",
    ),
    "fromage": Source(
        "On the distance between two neural networks and the stability of learning",
        "Bernstein, Jeremy; Vahdat, Arash; Yue, Yisong; Liu, Ming-Yu",
        2020,
        arxiv="2002.03432",
    ),
    "polyak_sgd": Source(
        "Stochastic Polyak Step-size for SGD: An Adaptive Learning Rate for Fast Convergence",
        "Loizou, Nicolas; Vaswani, Sharan; Laradji, Issam; Lacoste-Julien, Simon",
        2020,
        arxiv="2002.10542",
    ),
    "acprop": Source(
        "Momentum Centering and Asynchronous Update for Adaptive Gradient Methods",
        "Zhuang, Juntang; Ding, Yifan; Tang, Tommy; Dvornek, Nicha; Tatikonda, Sekhar; Duncan, James S.",
        2021,
        arxiv="2110.05454",
    ),
    "adopt": Source(
        "ADOPT: Modified Adam Can Converge with Any β2 with the Optimal Rate",
        "Taniguchi, Shohei; Harada, Keno; Minegishi, Gouki; Oshima, Yuta; Jeong, Seong Cheol;"
        " Nagahara, Go; Iiyama, Tomoshi; Suzuki, Masahiro; Iwasawa, Yusuke; Matsuo, Yutaka",
        2024,
        arxiv="2411.02853",
    ),
    "simplified_ademamix": Source(
        "Connections between Schedule-Free Optimizers, AdEMAMix, and Accelerated SGD Variants",
        "Morwani, Depen; Vyas, Nikhil; Zhang, Hanlin; Kakade, Sham",
        2025,
        arxiv="2502.02431",
    ),
    "cocob": Source(
        "Training Deep Networks without Learning Rates Through Coin Betting",
        "Orabona, Francesco; Tommasi, Tatiana",
        2017,
        arxiv="1705.07795",
    ),
    "dadapt_adamw": Source(
        "Learning-Rate-Free Learning by D-Adaptation",
        "Defazio, Aaron; Mishchenko, Konstantin",
        2023,
        arxiv="2301.07733",
    ),
    "prodigy": Source(
        "Prodigy: An Expeditiously Adaptive Parameter-Free Learner",
        "Mishchenko, Konstantin; Defazio, Aaron",
        2023,
        arxiv="2306.06101",
    ),
    "dog": Source(
        "DoG is SGD's Best Friend: A Parameter-Free Dynamic Step Size Schedule",
        "Ivgi, Maor; Hinder, Oliver; Carmon, Yair",
        2023,
        arxiv="2302.12022",
    ),
    "dowg": Source(
        "DoWG Unleashed: An Efficient Universal Parameter-Free Gradient Descent Method",
        "Khaled, Ahmed; Mishchenko, Konstantin; Jin, Chi",
        2023,
        arxiv="2305.16284",
    ),
    "momo": Source(
        "MoMo: Momentum Models for Adaptive Learning Rates",
        "Schaipp, Fabian; Ohana, Ruben; Eickenberg, Michael; Defazio, Aaron; Gower, Robert M.",
        2023,
        arxiv="2305.07583",
    ),
    "mechanize": Source(
        "Mechanic: A Learning Rate Tuner",
        "Cutkosky, Ashok; Defazio, Aaron; Mehta, Harsh",
        2023,
        arxiv="2306.00144",
    ),
    "clip_by_global_norm": Source(
        "On the difficulty of training Recurrent Neural Networks",
        "Pascanu, Razvan; Mikolov, Tomas; Bengio, Yoshua",
        2012,
        arxiv="1211.5063",
    ),
}
