"""Images that steer a sampling: one to start from, controls, a style.

Each is first a value that names its files, checked before anything heavy is loaded and kept in recipes. It is then made
ready for the sampler, at the size of a request:

    as it is typed                       ready for the sampler
    init_image.InitImage                 canvas.Canvas (pixels), init_latents.InitLatents
    control_ref.ControlRef               controls.Control; its map by canny or map_models
    styles.Styles, style_ref.StyleRef    image_style.SharedStyle or image_style.AdapterStyle
    from_images.FromImages (all three)   image_inputs.ImageInputs (all three)

`found_mask` finds the mask that words name; `line_options` reads the same options from a line of --prompts.
"""
