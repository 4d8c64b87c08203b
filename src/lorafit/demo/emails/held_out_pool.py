"""The phrasings of the held-out e-mails. None of them, and no name or product, occurs in `training_pool`."""

from .pool import Pool

HELD_OUT = Pool(
    first_names=(
        "Agnes", "Bilal", "Cora", "Damian", "Esther", "Felix", "Gwen", "Hugo", "Irina", "Jasper", "Katrin",
        "Leon", "Mirela", "Nils", "Odette", "Pablo", "Renata", "Stefan", "Thandi", "Vera", "Walter",
        "Xenia", "Yannick", "Zara",
    ),
    last_names=(
        "Adeyemi", "Bauer", "Caldwell", "Duarte", "Engel", "Ferrari", "Goldberg", "Holm", "Ibrahim",
        "Janssen", "Kowalski", "Larsen", "Mendes", "Nguyen", "Ortega", "Pereira", "Reyes", "Schultz",
        "Takahashi", "Urban", "Vogel", "Whitaker", "Young", "Zielinski",
    ),
    product_kinds=("", "green", "grey", "yellow", "medium", "mini", "orange", "round", "slim"),
    product_things=(
        "walnut sideboard", "reading light", "canvas satchel", "rice cooker", "lawn mower", "down duvet",
        "badminton net", "milk frother", "bar stool", "car seat", "copper saucepan", "swimming goggles",
        "photo album", "hand saw", "noise cancelling headphones", "winter coat", "marble coaster",
        "foam roller", "bathroom scale", "inflatable kayak", "violin bow", "cat tree", "graphics tablet",
        "usb hub", "salad bowl", "velvet cushion", "ski gloves", "paper shredder", "jigsaw puzzle",
        "beard trimmer",
    ),
    asks={
        "cancel": (
            "Sadly the purchase of the {product} has to be called off.",
            "Is there still time to undo {order}? The {product} isn't wanted after all.",
            "Scrap the {product}, I won't be needing one.",
            "nevermind the {product}, plz cancel",
            "Our committee voted against the {product}, hence this cancellation of {order}.",
            "Kill the {product} shipment, somebody bought me one already.",
        ),
        "refund": (
            "Since the {product} fell apart on day two, refund me.",
            "Where's the money for the {product} that went back to your depot?",
            "Transfer back everything we spent on the {product} ({order}), it never worked.",
            "Not happy with the {product}, money back please",
            "A refund on {order} is due: the {product} came in pieces.",
            "After three repairs the {product} is dead again and only a refund will do.",
        ),
        "exchange": (
            "This {product} has a dent; another one in its place would be lovely.",
            "Would you swap the {product} of {order} for a green one?",
            "Your packer put in the wrong {product}, let's exchange it.",
            "got the {product} in red but need black, can we change that",
            "Having tried the {product} ({order}), a bigger one would suit us better, so an exchange please.",
            "As the warranty covers my {product}, kindly supply a replacement unit.",
        ),
        "invoice": (
            "Our finance department requires an invoice covering the {product}.",
            "Missing from my files: the receipt to {order}, one {product}.",
            "Would you mail over the bill belonging to the {product}?",
            "need invoice 4 the {product} asap",
            "To claim expenses on the {product}, a VAT invoice made out to my firm is essential ({order}).",
            "There was no paper bill in the box with the {product}; a PDF will do.",
        ),
        "delivery": (
            "Any news on when my {product} turns up?",
            "Nothing has been delivered yet, though {order} ({product}) shows as dispatched.",
            "Our doorbell stayed silent again: when is the {product} being delivered?",
            "still no {product}... wheres the parcel",
            "What does the tracking say about the {product}, consignment of {order}?",
            "Your van drove past without leaving the {product}; please find out where it is.",
        ),
    },
    order_lines=(
        "Purchase reference: {order}.",
        "This concerns {order}.",
        "According to your mail the order is {order}.",
        "Look up {order} in your system.",
        "its order {order}",
    ),
    date_lines=(
        "Everything should be finished no later than {date}.",
        "After {date} it's of no use to us.",
        "Please act on this by end of {date}.",
        "I'm giving you until {date}.",
        "Would {date} be feasible as the final date?",
        "has to be through by {date}",
    ),
    amount_lines=(
        "My statement shows {amount} for this item.",
        "It set us back {amount}.",
        "Price on the label: {amount}.",
        "I transferred {amount} to your account for it.",
        "{amount} is what the thing cost.",
        "gave you {amount} for that",
    ),
    asides=(
        "Purchase {other_order} from spring can stay as it is.",
        "Back on {other_date} someone promised to ring me.",
        "Your colleague {other_name} was friendly but could not help.",
        "Should anything be unclear, ring {phone}.",
        "My neighbour {other_name} praised your {other_product}, incidentally.",
        "Shipping ({other_amount}) was extra, but that's okay.",
        "The box reached us on {other_date}.",
        "Please don't mix this up with {other_order}.",
        "Elsewhere people ask {other_amount}, so I chose you.",
        "Honestly, your website could use some love.",
        "My daughter had her heart set on it.",
        "At checkout on {other_date} there was also a {other_product} in my basket.",
    ),
    greetings=(
        "To whom it may concern,", "Good afternoon all,", "Greetings!", "Dear shop,", "Evening folks,",
        "{name} writing.", "Ciao, it's {name}.",
    ),
    closings=(
        "With best wishes,", "Respectfully,", "Looking forward to your answer", "ta", "Warmly,",
        "Much obliged,",
    ),
    signature_tails=(
        "", "", "", "ph {phone}", "Office Manager | {phone}", "Get the app for your mailbox",
        "Deputy: {other_name}",
    ),
    quotes=(
        "We confirm that parcel {other_order} left us {other_date}.",
        "A credit of {other_amount} is on its way for your {other_product}.",
        "Sorry for the wait! {other_name} (help desk)",
        "Which item is this about? You have {other_order} open. {other_name}",
    ),
    quote_headers=(
        "{other_date}, from {other_name}:", "_____ earlier mail _____", "{other_name} replied {other_date}",
    ),
    forwards=(
        "Over to you! /{other_name}\nBegin forwarded mail\n"
        "Sender: {name}\nReceived: {other_date}\nTopic: {subject}",
        "One more of these... {other_name}\n\nSender: {name}\nRecipient: helpdesk\nTopic: {subject}",
        "Sender: {name}\nReceived: {other_date}\nCc: {other_name}\nTopic: {subject}",
    ),
    subjects=("help please", "about that {product}", "2nd attempt!!", "FW: {order}", "{product} / {order}"),
    bullets=(
        ("Purchase ref", "Finish by", "What it cost"),
        ("order id", "due", "price"),
        ("Confirmation", "No later than", "Sum"),
    ),
)  # fmt: skip
