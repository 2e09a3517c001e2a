"""Three ways to run the same ServerApp and ClientApp: in process, on Ray, by Flower."""

import logging
import warnings

# In a notebook, Ray and tqdm recommend ipywidgets when they are imported; nothing here uses it.
logging.getLogger("ray.widgets.util").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", "IProgress not found")
