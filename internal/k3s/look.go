// SPDX-License-Identifier: Apache-2.0

package k3s

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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
	paths := []string{configFile}
	for _, pattern := range []string{"*.yaml", "*.yml"} {
		found, err := filepath.Glob(filepath.Join(root, filepath.Dir(DropIn), pattern)) // sorted
		if err != nil {
			return s, fmt.Errorf("read k3s's configuration: %w", err)
		}
		for _, path := range found {
			paths = append(paths, filepath.Join(filepath.Dir(DropIn), filepath.Base(path)))
		}
	}
	for _, path := range paths {
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

// environmentFile is where k3s's installer writes the variables of an agent's unit.
const environmentFile = "/etc/systemd/system/k3s-agent.service.env"

// readEnvironment reads the address of an agent's server from its environment, which counts if no
// file and no flag has it.
func (s Settings) readEnvironment(root string) error {
	if _, ok := s.Values["server"]; ok || s.Role != Agent {
		return nil
	}
	text, err := os.ReadFile(filepath.Join(root, environmentFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read k3s's environment: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "K3S_URL="); ok {
			s.Values["server"] = Value{unquote(value), environmentFile}
		}
	}
	return nil
}

func (s Settings) readFile(root, path string) error {
	text, err := os.ReadFile(filepath.Join(root, path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var values map[string]any
	if err := yaml.Unmarshal(text, &values); err != nil {
		return err
	}
	for key, v := range values {
		text := flagText(v)
		// A key that ends in + adds to the values of earlier files.
		if name, adds := strings.CutSuffix(key, "+"); adds {
			if old, ok := s.Values[name]; ok {
				text = old.Text + "," + text
			}
			key = name
		}
		s.Values[key] = Value{text, path}
	}
	return nil
}

// flagText returns a value in the form of a command line flag.
func flagText(v any) string {
	list, ok := v.([]any)
	if !ok {
		return fmt.Sprint(v)
	}
	texts := make([]string, len(list))
	for i, v := range list {
		texts[i] = fmt.Sprint(v)
	}
	return strings.Join(texts, ",")
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
