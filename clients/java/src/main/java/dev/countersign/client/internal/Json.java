package dev.countersign.client.internal;

import com.google.protobuf.ListValue;
import com.google.protobuf.Struct;
import com.google.protobuf.Value;
import java.nio.charset.StandardCharsets;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** JSON as text, as values of Java, and as the messages of {@code google.protobuf.Struct}. */
public final class Json {
  /** The largest integer up to which doubles hold all integers: 2^53. */
  private static final double MAX_EXACT_INTEGER = 9_007_199_254_740_992.0;

  private Json() {}

  /** Decodes the text of a value that was checked. */
  static Object decode(String text) {
    try {
      return new JsonReader(text.getBytes(StandardCharsets.UTF_8)).decode();
    } catch (JsonException e) {
      throw new IllegalStateException(e);
    }
  }

  /** Returns the text of a value. */
  public static String encode(Object value) {
    StringBuilder text = new StringBuilder();
    encode(value, text);
    return text.toString();
  }

  private static void encode(Object value, StringBuilder text) {
    if (value == null || value instanceof Boolean) {
      text.append(value);
    } else if (value instanceof Number number) {
      encodeNumber(number, text);
    } else if (value instanceof Map<?, ?> map) {
      text.append('{');
      String separator = "";
      for (Map.Entry<?, ?> member : map.entrySet()) {
        text.append(separator);
        encodeString(String.valueOf(member.getKey()), text);
        text.append(':');
        encode(member.getValue(), text);
        separator = ",";
      }
      text.append('}');
    } else if (value instanceof Iterable<?> elements) {
      text.append('[');
      String separator = "";
      for (Object element : elements) {
        text.append(separator);
        encode(element, text);
        separator = ",";
      }
      text.append(']');
    } else if (value instanceof CharSequence string) {
      encodeString(string, text);
    } else {
      throw new IllegalArgumentException("JSON cannot write a " + value.getClass().getName());
    }
  }

  private static void encodeNumber(Number number, StringBuilder text) {
    if (number instanceof Double || number instanceof Float) {
      double value = number.doubleValue();
      if (value == Math.rint(value) && Math.abs(value) <= MAX_EXACT_INTEGER) {
        text.append((long) value);
        return;
      }
      if (Double.isNaN(value) || Double.isInfinite(value)) {
        text.append("null");
        return;
      }
    }
    text.append(number);
  }

  private static void encodeString(CharSequence string, StringBuilder text) {
    text.append('"');
    for (int index = 0; index < string.length(); index++) {
      char next = string.charAt(index);
      if (next == '"' || next == '\\') {
        text.append('\\').append(next);
      } else if (next < ' ') {
        text.append(String.format("\\u%04x", (int) next));
      } else {
        text.append(next);
      }
    }
    text.append('"');
  }

  /** Converts members to a message. */
  public static Struct toStruct(Map<String, ?> members) {
    Struct.Builder struct = Struct.newBuilder();
    members.forEach((name, value) -> struct.putFields(name, toValue(value)));
    return struct.build();
  }

  private static Value toValue(Object value) {
    Value.Builder message = Value.newBuilder();
    if (value == null) {
      message.setNullValueValue(0);
    } else if (value instanceof Boolean truth) {
      message.setBoolValue(truth);
    } else if (value instanceof Number number) {
      message.setNumberValue(number.doubleValue());
    } else if (value instanceof CharSequence text) {
      message.setStringValue(text.toString());
    } else if (value instanceof Map<?, ?> members) {
      Struct.Builder struct = Struct.newBuilder();
      members.forEach((name, member) -> struct.putFields(String.valueOf(name), toValue(member)));
      message.setStructValue(struct);
    } else if (value instanceof List<?> elements) {
      ListValue.Builder list = ListValue.newBuilder();
      elements.forEach(element -> list.addValues(toValue(element)));
      message.setListValue(list);
    } else {
      throw new IllegalArgumentException("JSON cannot hold a " + value.getClass().getName());
    }
    return message.build();
  }

  /** Converts a message to members. Whole numbers up to 2^53 become integers. */
  public static Map<String, Object> fromStruct(Struct struct) {
    Map<String, Object> members = new LinkedHashMap<>();
    struct.getFieldsMap().forEach((name, value) -> members.put(name, fromValue(value)));
    return members;
  }

  private static Object fromValue(Value value) {
    return switch (value.getKindCase()) {
      case BOOL_VALUE -> value.getBoolValue();
      case STRING_VALUE -> value.getStringValue();
      case NUMBER_VALUE -> fromNumber(value.getNumberValue());
      case LIST_VALUE ->
          value.getListValue().getValuesList().stream().map(Json::fromValue).toList();
      case STRUCT_VALUE -> fromStruct(value.getStructValue());
      case NULL_VALUE, KIND_NOT_SET -> null;
    };
  }

  private static Object fromNumber(double number) {
    if (number == Math.rint(number) && Math.abs(number) <= MAX_EXACT_INTEGER) {
      return (long) number;
    }
    return Double.isNaN(number) || Double.isInfinite(number) ? null : (Object) number;
  }
}
