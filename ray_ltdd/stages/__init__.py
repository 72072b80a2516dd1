"""The method's stages: settings and one public function each."""
