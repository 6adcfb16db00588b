/** Colours of numbers: every scale is ordered by lightness or by a pair that the colour-blind tell apart. */

const STEPS = 256;

/** Cividis, of Nuñez, Anderton and Renslow (2018), at ten equal steps: dark blue to yellow. */
const CIVIDIS = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"];
/** As in the report: before and after, less and more. */
const LESS = "#3f7fd4";
const MORE = "#d3622a";
/** Strokes of lines that stand side by side, so that colour is not all that tells them apart. */
const DASHES = ["solid", "7px,3px", "2px,2px", "9px,3px,2px,3px", "14px,4px", "14px,3px,2px,3px,2px,3px"];

const parts = (hex) => [1, 3, 5].map((place) => parseInt(hex.slice(place, place + 2), 16));

/** Colour at `share` in [0, 1] of a row of colours, as [red, green, blue]. */
function mix(colours, share) {
  const place = Math.min(Math.max(share, 0), 1) * (colours.length - 1);
  const below = Math.min(Math.floor(place), colours.length - 2);
  const [first, second] = [parts(colours[below]), parts(colours[below + 1])];
  return first.map((value, channel) => Math.round(value + (place - below) * (second[channel] - value)));
}

function table(colour) {
  return Uint8ClampedArray.from(Array.from({ length: STEPS }, (_, step) => colour(step / (STEPS - 1))).flat());
}

/** 256 colours from low to high as red, green, blue and alpha, one byte each. */
export function confidenceTable() {
  return table((share) => [...mix(CIVIDIS, share), 255]);
}

/** 256 colours from −1 to 1 whose middle is clear, so that it is the page's own ground in light and dark. */
export function differenceTable() {
  return table((share) => [...parts(share < 0.5 ? LESS : MORE), Math.round(255 * Math.abs(2 * share - 1) ** 0.7)]);
}

/** Eleven of a table's colours at equal steps, as CSS and SVG have them. */
export function sampleRamp(colours) {
  const at = (step) => 4 * Math.round(step * (STEPS - 1));
  const name = ([red, green, blue, alpha]) => `rgba(${red}, ${green}, ${blue}, ${(alpha / 255).toFixed(3)})`;
  return Array.from({ length: 11 }, (_, step) => name(colours.subarray(at(step / 10), at(step / 10) + 4)));
}

/** The line of each of `count` focal depths, in order: a colour between the ends of a row of colours, and a stroke. */
export function depthLines(count, colours) {
  const colour = (place) => `rgb(${mix(colours, place / Math.max(1, count - 1)).join(", ")})`;
  return Array.from({ length: count }, (_, place) => ({ color: colour(place), dash: DASHES[place % DASHES.length] }));
}
