"""What the methods of a study cite: one entry per source, numbered in the order in which a text names them."""

from fedbrain.report.html import Html, items, join, link

DOI, ARXIV = "https://doi.org/", "https://arxiv.org/abs/"

# Key: the source in words, and where it is found (empty where no permanent address is known to us).
SOURCES = {
    "study": ("Mouheb et al. Benchmark of federated fine-tuning of SAM-Med3D for dementia classification from T1-weighted MRI. arXiv 2508.21458, 2025.", f"{ARXIV}2508.21458"),
    "tripod": ("Collins GS, Moons KGM, Dhiman P, et al. TRIPOD+AI statement. BMJ 385:e078378, 2024.", f"{DOI}10.1136/bmj-2023-078378"),
    "cards": ("Mitchell M, Wu S, Zaldivar A, et al. Model cards for model reporting. FAT* 2019, 220-229.", f"{DOI}10.1145/3287560.3287596"),
    # data and preprocessing
    "bids": ("Gorgolewski KJ, et al. The brain imaging data structure. Scientific Data 3:160044, 2016.", f"{DOI}10.1038/sdata.2016.44"),
    "n4": ("Tustison NJ, et al. N4ITK: improved N3 bias correction. IEEE Transactions on Medical Imaging 29:1310-1320, 2010.", f"{DOI}10.1109/TMI.2010.2046908"),
    "ants": ("Avants BB, et al. A reproducible evaluation of ANTs similarity metric performance in brain image registration. NeuroImage 54:2033-2044, 2011.", f"{DOI}10.1016/j.neuroimage.2010.09.025"),
    "mni": ("Fonov V, et al. Unbiased average age-appropriate atlases for pediatric studies. NeuroImage 54:313-327, 2011.", f"{DOI}10.1016/j.neuroimage.2010.07.033"),
    "deepbet": ("Fisch L, et al. deepbet: fast brain extraction of T1-weighted MRI using convolutional neural networks. arXiv 2308.07003; Computers in Biology and Medicine, 2024.", f"{ARXIV}2308.07003"),
    "hd_bet": ("Isensee F, et al. Automated brain extraction of multisequence MRI using artificial neural networks. Human Brain Mapping 40:4952-4964, 2019.", f"{DOI}10.1002/hbm.24750"),
    "synthstrip": ("Hoopes A, et al. SynthStrip: skull-stripping for any brain image. NeuroImage 260:119474, 2022.", f"{DOI}10.1016/j.neuroimage.2022.119474"),
    "nyul": ("Nyúl LG, Udupa JK. On standardizing the MR image intensity scale. Magnetic Resonance in Medicine 42:1072-1081, 1999.", ""),
    "whitestripe": ("Shinohara RT, et al. Statistical normalization techniques for magnetic resonance imaging. NeuroImage: Clinical 6:9-19, 2014.", f"{DOI}10.1016/j.nicl.2014.08.008"),
    "intensity": ("Reinhold JC, et al. Evaluating the impact of intensity normalization on MR image synthesis. SPIE Medical Imaging, 2019; arXiv 1812.04652.", f"{ARXIV}1812.04652"),
    # models and training
    "sam_med3d": ("Wang H, et al. SAM-Med3D. arXiv 2310.15161; IEEE Transactions on Neural Networks and Learning Systems, 2025.", f"{ARXIV}2310.15161"),
    "brainiac": ("Tak D, et al. A generalizable foundation model for analysis of human brain MRI. Nature Neuroscience, 2026.", f"{DOI}10.1038/s41593-026-02202-6"),
    "resnet": ("He K, Zhang X, Ren S, Sun J. Deep residual learning for image recognition. CVPR 2016, 770-778.", f"{DOI}10.1109/CVPR.2016.90"),
    "lora": ("Hu EJ, et al. LoRA: low-rank adaptation of large language models. ICLR 2022; arXiv 2106.09685.", f"{ARXIV}2106.09685"),
    "adamw": ("Loshchilov I, Hutter F. Decoupled weight decay regularization. ICLR 2019; arXiv 1711.05101.", f"{ARXIV}1711.05101"),
    "combat": ("Johnson WE, Li C, Rabinovic A. Adjusting batch effects in microarray expression data using empirical Bayes methods. Biostatistics 8:118-127, 2007.", f"{DOI}10.1093/biostatistics/kxj037"),
    "combat_mri": ("Fortin JP, et al. Harmonization of multi-site diffusion tensor imaging data. NeuroImage 161:149-170, 2017.", f"{DOI}10.1016/j.neuroimage.2017.08.047"),
    "combat_distributed": ("Chen AA, et al. Privacy-preserving harmonization via distributed ComBat. NeuroImage 248:118822, 2022.", f"{DOI}10.1016/j.neuroimage.2021.118822"),
    # aggregation
    "fedavg": ("McMahan B, et al. Communication-efficient learning of deep networks from decentralized data. AISTATS 2017; arXiv 1602.05629.", f"{ARXIV}1602.05629"),
    "fedce": ("Jiang M, et al. Fair federated medical image segmentation via client contribution estimation. CVPR 2023; arXiv 2303.16520.", f"{ARXIV}2303.16520"),
    "rate_my_lora": ("He X, et al. Rate-My-LoRA: efficient and adaptive federated model tuning for cardiac MRI segmentation. ISBI 2025; arXiv 2501.03223.", f"{ARXIV}2501.03223"),
    "fedavgm": ("Hsu TMH, Qi H, Brown M. Measuring the effects of non-identical data distribution for federated visual classification. arXiv 1909.06335, 2019.", f"{ARXIV}1909.06335"),
    "fedopt": ("Reddi SJ, et al. Adaptive federated optimization. ICLR 2021; arXiv 2003.00295.", f"{ARXIV}2003.00295"),
    "median": ("Yin D, et al. Byzantine-robust distributed learning: towards optimal statistical rates. ICML 2018; arXiv 1803.01498.", f"{ARXIV}1803.01498"),
    "krum": ("Blanchard P, et al. Machine learning with adversaries: Byzantine tolerant gradient descent. NeurIPS 2017.", ""),
    "bulyan": ("El Mhamdi EM, Guerraoui R, Rouault S. The hidden vulnerability of distributed learning in Byzantium. ICML 2018; arXiv 1802.07927.", f"{ARXIV}1802.07927"),
    "qfedavg": ("Li T, Sanjabi M, Beirami A, Smith V. Fair resource allocation in federated learning. ICLR 2020; arXiv 1905.10497.", f"{ARXIV}1905.10497"),
    "fedprox": ("Li T, et al. Federated optimization in heterogeneous networks. MLSys 2020; arXiv 1812.06127.", f"{ARXIV}1812.06127"),
    "scaffold": ("Karimireddy SP, et al. SCAFFOLD: stochastic controlled averaging for federated learning. ICML 2020; arXiv 1910.06378.", f"{ARXIV}1910.06378"),
    "fedper": ("Arivazhagan MG, et al. Federated learning with personalization layers. arXiv 1912.00818, 2019.", f"{ARXIV}1912.00818"),
    "fedbn": ("Li X, et al. FedBN: federated learning on non-IID features via local batch normalization. ICLR 2021; arXiv 2102.07623.", f"{ARXIV}2102.07623"),
    "flop": ("Yang Q, et al. FLOP: federated learning on medical datasets using partial networks. KDD 2021; arXiv 2102.05218.", f"{ARXIV}2102.05218"),
    "ditto": ("Li T, et al. Ditto: fair and robust federated learning through personalization. ICML 2021; arXiv 2012.04221.", f"{ARXIV}2012.04221"),
    "fedavg_ft": ("Yu T, Bagdasaryan E, Shmatikov V. Salvaging federated learning by local adaptation. arXiv 2002.04758, 2020.", f"{ARXIV}2002.04758"),
    "med_dual_lora": ("Perramon-Llussà J, et al. Med-DualLoRA: local adaptation of foundation models for 3D cardiac MRI. arXiv 2603.10967, 2026.", f"{ARXIV}2603.10967"),
    "fedopal": ("Tupper A, Gagné C. FedOPAL. arXiv 2510.12741, 2025.", f"{ARXIV}2510.12741"),
    "fedit": ("Zhang J, et al. Towards building the federated GPT: federated instruction tuning. ICASSP 2024; arXiv 2305.05644.", f"{ARXIV}2305.05644"),
    "flexlora": ("Bai J, et al. Federated fine-tuning of large language models under heterogeneous tasks and client resources. NeurIPS 2024; arXiv 2402.11505.", f"{ARXIV}2402.11505"),
    "ffa_lora": ("Sun Y, et al. Improving LoRA in privacy-preserving federated learning. ICLR 2024; arXiv 2403.12313.", f"{ARXIV}2403.12313"),
    "fedsa_lora": ("Guo P, et al. Selective aggregation for low-rank adaptation in federated learning. ICLR 2025; arXiv 2410.01463.", f"{ARXIV}2410.01463"),
    "rolora": ("Chen S, et al. Robust federated finetuning of foundation models via alternating minimization of LoRA. arXiv 2409.02346, 2024.", f"{ARXIV}2409.02346"),
    "fedex_lora": ("Singhal R, et al. FedEx-LoRA: exact aggregation for federated and efficient fine-tuning. ACL 2025; arXiv 2410.09432.", f"{ARXIV}2410.09432"),
    "flora": ("Wang Z, et al. FLoRA: federated fine-tuning large language models with heterogeneous low-rank adaptations. NeurIPS 2024; arXiv 2409.05976.", f"{ARXIV}2409.05976"),
    # evaluation
    "bootstrap": ("Efron B, Tibshirani RJ. An introduction to the bootstrap. Chapman & Hall, 1993.", ""),
    "cluster": ("Rutter CM. Bootstrap estimation of diagnostic accuracy with patient-clustered data. Academic Radiology 7:413-419, 2000.", ""),
    "delong": ("DeLong ER, DeLong DM, Clarke-Pearson DL. Comparing the areas under two or more correlated receiver operating characteristic curves. Biometrics 44:837-845, 1988.", f"{DOI}10.2307/2531595"),
    "obuchowski": ("Obuchowski NA. Nonparametric analysis of clustered ROC curve data. Biometrics 53:567-578, 1997.", f"{DOI}10.2307/2533958"),
    "holm": ("Holm S. A simple sequentially rejective multiple test procedure. Scandinavian Journal of Statistics 6:65-70, 1979.", ""),
    "calibration": ("Van Calster B, et al. Calibration: the Achilles heel of predictive analytics. BMC Medicine 17:230, 2019.", f"{DOI}10.1186/s12916-019-1466-7"),
    "odds": ("Hardt M, Price E, Srebro N. Equality of opportunity in supervised learning. NeurIPS 2016; arXiv 1610.02413.", f"{ARXIV}1610.02413"),
    "site": ("Zech JR, et al. Variable generalization performance of a deep learning model to detect pneumonia in chest radiographs. PLOS Medicine 15:e1002683, 2018.", f"{DOI}10.1371/journal.pmed.1002683"),
    "mean_of_few": ("Hartung J, Knapp G. A refined method for the meta-analysis of controlled clinical trials with binary outcome. Statistics in Medicine 20:3875-3889, 2001.", f"{DOI}10.1002/sim.1009"),
    "loss_attack": ("Yeom S, et al. Privacy risk in machine learning: analyzing the connection to overfitting. IEEE CSF 2018; arXiv 1709.01604.", f"{ARXIV}1709.01604"),
    "lira": ("Carlini N, et al. Membership inference attacks from first principles. IEEE S&P 2022; arXiv 2112.03570.", f"{ARXIV}2112.03570"),
    "gradients": ("Sundararajan M, Taly A, Yan Q. Axiomatic attribution for deep networks. ICML 2017; arXiv 1703.01365.", f"{ARXIV}1703.01365"),
    "occlusion": ("Zeiler MD, Fergus R. Visualizing and understanding convolutional networks. ECCV 2014; arXiv 1311.2901.", f"{ARXIV}1311.2901"),
    "rollout": ("Abnar S, Zuidema W. Quantifying attention flow in transformers. ACL 2020; arXiv 2005.00928.", f"{ARXIV}2005.00928"),
    "scrambled": ("Adebayo J, et al. Sanity checks for saliency maps. NeurIPS 2018; arXiv 1810.03292.", f"{ARXIV}1810.03292"),
    # software
    "snakemake": ("Mölder F, et al. Sustainable data analysis with Snakemake. F1000Research 10:33, 2021.", f"{DOI}10.12688/f1000research.29032.2"),
    "flower": ("Beutel DJ, et al. Flower: a friendly federated learning research framework. arXiv 2007.14390, 2020.", f"{ARXIV}2007.14390"),
    "monai": ("Cardoso MJ, et al. MONAI: an open-source framework for deep learning in healthcare. arXiv 2211.02701, 2022.", f"{ARXIV}2211.02701"),
    "pytorch": ("Paszke A, et al. PyTorch: an imperative style, high-performance deep learning library. NeurIPS 2019; arXiv 1912.01703.", f"{ARXIV}1912.01703"),
}  # fmt: skip

# What stands for a rule of aggregation; SimpleAvg, centralized and local need none.
OF_RULE = {
    "fedavg": "fedavg",
    "fedce": "fedce",
    "rate_my_lora": "rate_my_lora",
    "fedavgm": "fedavgm",
    "fedadam": "fedopt",
    "fedyogi": "fedopt",
    "fedadagrad": "fedopt",
    "qfedavg": "qfedavg",
    "median": "median",
    "trimmed_mean": "median",
    "krum": "krum",
    "multi_krum": "krum",
    "bulyan": "bulyan",
} | {
    name: name
    for name in (
        *("fedprox", "scaffold", "fedper", "fedbn", "flop", "ditto", "fedavg_ft", "med_dual_lora", "fedopal"),
        *("fedit", "flexlora", "ffa_lora", "fedsa_lora", "rolora", "fedex_lora", "flora"),
    )
}


class Citations:
    """Numbers of sources, given in the order in which they are first named."""

    def __init__(self):
        self.used: list[str] = []

    def __call__(self, *keys: str) -> str:
        """``[1, 2]`` for some sources; empty for none."""
        self.used += [key for key in dict.fromkeys(keys) if key not in self.used]
        return f"[{', '.join(str(self.used.index(key) + 1) for key in dict.fromkeys(keys))}]" if keys else ""

    def text(self) -> str:
        """The list as plain text, a line each."""
        return "\n".join(
            f"{number}. {' '.join(filter(None, SOURCES[key]))}" for number, key in enumerate(self.used, start=1)
        )

    def html(self) -> Html:
        """The list with links."""
        return items(
            [join(words, " ", link(where, where) if where else "") for words, where in map(SOURCES.get, self.used)],
            ordered=True,
            kind="references",
        )
