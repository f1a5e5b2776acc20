// SPDX-License-Identifier: Apache-2.0

package k3s

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// configFile is the file that k3s reads first.
const configFile = "/etc/rancher/k3s/config.yaml"

// ReadSettings reads the settings of k3s: from its configuration file, from the drop-ins, and from
// the command line of its unit, which overrides both.
func ReadSettings(root string) (Settings, error) { return readSettings(root, true) }

// readSettings is ReadSettings, with our file or without.
func readSettings(root string, ours bool) (Settings, error) {
	s := Settings{Role: RoleOf(root), Values: make(map[string]Value)}
	dropIns, err := dropIns(root)
	if err != nil {
		return s, fmt.Errorf("read k3s's configuration: %w", err)
	}
	for _, path := range append([]string{configFile}, dropIns...) {
		if path == DropIn && !ours {
			continue
		}
		if err := s.readFile(root, path); err != nil {
			return s, fmt.Errorf("read k3s's configuration %s: %w", path, err)
		}
	}
	if s.Role == Unknown {
		return s, nil
	}
	unit := units[s.Role]
	text, err := os.ReadFile(filepath.Join(root, unit))
	if err != nil {
		return s, fmt.Errorf("read k3s's unit: %w", err)
	}
	for _, arg := range arguments(string(text)) {
		s.Values[arg.key] = Value{arg.value, unit}
	}
	return s, s.readEnvironment(root)
}

// dropIns returns the paths of the drop-ins that k3s reads, in its order (dotDFiles in its source).
func dropIns(root string) ([]string, error) {
	dir := filepath.Dir(DropIn)
	entries, err := os.ReadDir(filepath.Join(root, dir)) // sorted
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var paths []string
	for _, e := range entries {
		switch strings.ToLower(filepath.Ext(e.Name())) {
		case ".yaml", ".yml":
			if !e.IsDir() {
				paths = append(paths, filepath.Join(dir, e.Name()))
			}
		}
	}
	return paths, nil
}

// variables are those of a unit that are read, and the keys that they stand for: where the server to join
// is, and where servers keep their state if not in etcd.
var variables = map[string]string{"K3S_URL": "server", "K3S_DATASTORE_ENDPOINT": "datastore-endpoint"}

// readEnvironment reads the file in which k3s's installer writes the variables of a unit. One counts if
// no file and no flag has its key.
func (s Settings) readEnvironment(root string) error {
	path := environmentFile(s.Role)
	text, err := os.ReadFile(filepath.Join(root, path))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read k3s's environment: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		key, isRead := variables[name]
		if _, isSet := s.Values[key]; isRead && !isSet {
			s.Values[key] = Value{unquote(value), path}
		}
	}
	return nil
}

func environmentFile(r Role) string { return units[r] + ".env" }

// readFile adds the settings of a file, if there is one. They count in the order in which they are
// written, as one file may have a key with and without +.
func (s Settings) readFile(root, path string) error {
	text, err := os.ReadFile(filepath.Join(root, path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return err
	}
	if len(doc.Content) == 0 || doc.Content[0].ShortTag() == "!!null" {
		return nil // a file without any settings
	}
	if doc.Content[0].Kind != yaml.MappingNode {
		return errors.New("it has no keys")
	}
	for pair := range slices.Chunk(doc.Content[0].Content, 2) {
		var v any
		if err := pair[1].Decode(&v); err != nil {
			return err
		}
		s.set(pair[0].Value, flagText(v), path)
	}
	return nil
}

// set sets the value of a key from a file. A key that ends in + adds to the values of earlier files.
func (s Settings) set(key, text, path string) {
	name, adds := strings.CutSuffix(key, "+")
	if !adds {
		s.Values[name] = Value{text, path}
		return
	}
	old := s.Values[name]
	if old.Text != "" {
		text = old.Text + "," + text
	}
	s.Values[name] = Value{text, old.From}
}

// flagText returns a value in the form of a command line flag.
func flagText(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case []any:
		texts := make([]string, len(v))
		for i, item := range v {
			texts[i] = flagText(item)
		}
		return strings.Join(texts, ",")
	}
	return fmt.Sprint(v)
}

// arguments returns the flags of a unit's ExecStart=. k3s's installer writes each on a line
// of its own, in quotes. The values of a flag that occurs several times are joined.
func arguments(unit string) []setting {
	_, command, ok := strings.Cut(strings.ReplaceAll(unit, "\\\n", " "), "\nExecStart=")
	if !ok {
		return nil
	}
	command, _, _ = strings.Cut(command, "\n")
	var out []setting
	words := strings.Fields(command)
	for i := 0; i < len(words); i++ {
		key, isFlag := strings.CutPrefix(unquote(words[i]), "--")
		if !isFlag {
			continue
		}
		key, value, has := strings.Cut(key, "=")
		if !has && i+1 < len(words) && !strings.HasPrefix(unquote(words[i+1]), "-") {
			i++
			value = unquote(words[i])
		}
		for _, o := range out {
			if o.key == key {
				value = o.value + "," + value
			}
		}
		out = append(out, setting{key, value})
	}
	return out
}

func unquote(word string) string { return strings.Trim(word, `'"`) }
