// SPDX-License-Identifier: Apache-2.0

package bugreport

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// hidden stands in the place of a secret.
const hidden = "(secret)"

// scrubber replaces secrets: those that this node has, whatever their encoding, and what looks like one.
type scrubber struct {
	known *strings.Replacer
	looks []pattern
}

type pattern struct {
	of   *regexp.Regexp
	with string
}

// newScrubber reads the secrets of this node. One that exists and can't be read is an error: it could not be
// left out.
func newScrubber(o Options) (scrubber, error) {
	var found [][]byte
	for _, file := range []string{
		filepath.Join(o.StateDir, "identity.json"),
		filepath.Join(o.RunDir, "path.json"),
	} {
		text, err := readSecret(file)
		if err != nil {
			return scrubber{}, err
		}
		found = append(found, keysIn(text)...)
	}
	lines, err := readSecret(o.SecretFile)
	if err != nil {
		return scrubber{}, err
	}
	var secrets []string
	for line := range strings.Lines(string(lines)) {
		line = strings.TrimSpace(line)
		secrets = append(secrets, line)
		if raw, err := base64.StdEncoding.DecodeString(line); err == nil {
			found = append(found, raw)
		}
	}
	for _, raw := range found {
		secrets = append(secrets, encodings(raw)...)
	}
	slices.SortFunc(secrets, func(a, b string) int { return len(b) - len(a) }) // one may begin with another one
	var pairs []string
	for _, s := range secrets {
		if len(s) >= minSecret {
			pairs = append(pairs, s, hidden)
		}
	}
	return scrubber{
		known: strings.NewReplacer(pairs...),
		looks: []pattern{
			{regexp.MustCompile(`(?im)^(\s*#?\s*(?:private|preshared)[ _-]?key\s*[:=]\s*)\S+`), "${1}" + hidden},
			{regexp.MustCompile(`(?i)((?:secret|token|password|passwd|psk|private-key|seed)["']?\s*[:=]\s*)["']?[^\s"'/,]+["']?`), "${1}" + hidden},
			{regexp.MustCompile(`(?i)(--(?:secret|token|password)[= ])\S+`), "${1}" + hidden},
			{regexp.MustCompile(`(://)[^/@\s]+@`), "${1}" + hidden + "@"},
		},
	}, nil
}

// minSecret is how long a text must be to be looked for everywhere. A shorter one would be found in words.
const minSecret = 16

func readSecret(file string) ([]byte, error) {
	if file == "" {
		return nil, nil
	}
	text, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the secrets that the report must not contain: %w", err)
	}
	return text, nil
}

// keysIn returns the private keys in a file of the state directory.
func keysIn(text []byte) (keys [][]byte) {
	var values map[string]any
	if json.Unmarshal(text, &values) != nil {
		return nil // damaged, or not there
	}
	for name, v := range values {
		s, ok := v.(string)
		if !ok || !strings.Contains(name, "private") && !strings.Contains(name, "seed") {
			continue
		}
		if raw, err := base64.StdEncoding.DecodeString(s); err == nil {
			keys = append(keys, raw)
		}
	}
	return keys
}

// encodings returns the texts in which a key is written anywhere.
func encodings(raw []byte) []string {
	lower := hex.EncodeToString(raw)
	return []string{
		base64.StdEncoding.EncodeToString(raw), base64.RawStdEncoding.EncodeToString(raw),
		base64.URLEncoding.EncodeToString(raw), base64.RawURLEncoding.EncodeToString(raw),
		lower, strings.ToUpper(lower), string(raw),
	}
}

func (s scrubber) scrub(content []byte) []byte {
	text := s.known.Replace(string(content))
	for _, p := range s.looks {
		text = p.of.ReplaceAllString(text, p.with)
	}
	return []byte(text)
}
